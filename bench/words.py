"""How a measured number is said: "8.5 x faster", "15 % less time", "54 MiB"."""

from __future__ import annotations

EAGER, COMPILE = "PyTorch eager", "torch.compile"
PRODUCTS = "the matrix products alone"
PRODUCTS_KEPT = "the products of a step that keeps S and T"
# Records name what they timed as the benchmark does; readers get these names.
_NAMES = {
    "dense eager": EAGER,
    "dense torch.compile": COMPILE,
    "floor": PRODUCTS,
    "floor of kept products": PRODUCTS_KEPT,
}


def name(provider: str) -> str:
    """What a reader calls a provider of the records."""
    return _NAMES.get(provider, provider)


def number(value: float, digits: int = 2) -> str:
    """A number of so many significant digits, without an exponent: 3.0, 54, 2,500."""
    if abs(value) >= 10**digits:
        return f"{float(f'{value:.{digits}g}'):,.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def faster(ratio: float, digits: int = 2) -> str:
    """A time over another's, as a speed: "8.5 x faster", "4.2 % slower", "as fast"."""
    if round(ratio, digits + 1) == 1:
        return "as fast"
    times = max(ratio, 1 / ratio)
    much = f"{number(times, digits)} x"
    if times < 1.1:  # "1.0 x" says nothing
        much = f"{number(100 * (times - 1), digits)} %"
    return f"{much} {'faster' if ratio < 1 else 'slower'}"


def than(compared: str, other: str) -> str:
    """Name the other side of a comparison: "8.5 x faster" becomes "8.5 x faster than eager".

    ``compared`` is what :func:`faster` or :func:`more_time` returned.
    """
    link = {"as fast": "as", "as much time": "as"}.get(compared)
    link = link or ("of" if compared.endswith("the time") else "than")
    return f"{compared} {link} {other}"


def more_time(ratio: float, digits: int = 2) -> str:
    """A time over another's, as a difference: "18 % more time", "2.3 x the time"."""
    if ratio >= 2:
        return f"{number(ratio, digits)} x the time"
    if round(ratio, digits + 1) == 1:
        return "as much time"
    return f"{number(100 * abs(ratio - 1), digits)} % {'more' if ratio > 1 else 'less'} time"


def size(nbytes: float) -> str:
    """Bytes with a unit: "39.8 MiB", "2.48 GiB"."""
    unit, factor = ("GiB", 1 << 30) if nbytes >= 1 << 30 else ("MiB", 1 << 20)
    return f"{number(nbytes / factor, 3)} {unit}"
