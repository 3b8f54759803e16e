"""The page of what a GPU of sm_90 could do: a step's kernels, chunk products, additions and floors.

    python -m bench.models.predict [--ceilings FILE] [--headline FILE] [--out FILE]

``step_model.py`` is the arithmetic. The first FILE is that of ``bench/gpu/ceilings.py``, by default
``rates.CEILINGS`` if it is there; without it the rates are documented ones. The second is that of
``bench/gpu/headline.py`` on the same GPU, by default ``HEADLINE`` if it is there: its steps and
kernels stand beside the predicted ones. Run it after ``make machine-code``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.markdown import seconds, table
from bench.models.rates import CEILINGS, Rates, read
from bench.models.step_model import CASES, REST, Case, Kernel, Step, step
from bench.results_file import RESULTS

HEADLINE = RESULTS / "nvidia-h200" / "headline.json"
UNITS = ("product", "shared memory", "L2", "memory", "exponentials", "instructions", "shuffles")
STEP_LAUNCHES = 14  # of MFH at 420 x 350, which tests/bench/test_calls.py counts

Measured = dict[str, Any]  # lines of a headline file


def _named(case: Case) -> list[str]:
    """A case and its budget."""
    kept = "kept" if case.kept else "one pass" if case.sigmoid else "recomputed"
    return [case.name, f"{case.budget >> 30} GiB, {kept}"]


def _range(least: float, most: float) -> str:
    low, high = seconds(least), seconds(most)
    return low if low == high else f"{low} to {high}"


def _of_kernels(steps: list[Step], measured: Measured) -> str:
    rows = []
    for s in steps:
        for name, k in s.kernels:
            times = {**k.units, **k.after}
            cells = [seconds(times[unit]) if unit in times else "-" for unit in UNITS]
            row = [*_named(s.case), name, k.tile, str(k.programs), *cells, k.limit]
            took = _part(measured, s.case, name)
            rows.append([*row, _of_kernel(k), took])
    head = ["case", "budget", "kernel", "tile", "programs", *UNITS, "limited by", "time"]
    return table([*head, "measured"], rows)


def _of_kernel(k: Kernel) -> str:
    return _range(k.hidden, k.exposed)


def _part(measured: Measured, case: Case, name: str) -> str:
    """Measured time of a kernel: all parts of a step that begin with its name."""
    parts = measured.get(case.headline, {}).get("parts_milliseconds")
    if not parts:
        return "-"
    found = [
        took
        for phase in parts.values()
        for part, took in phase.items()
        if part.split(" of ")[0] == name
    ]
    return seconds(sum(found) / 1e3) if found else "-"


def _of_chunks(steps: list[Step], rates: Rates) -> str:
    rows = []
    for s in steps:
        c = s.gradient.costs
        row = [*_named(s.case), f"{c.height:,} x {c.width:,}", str(c.chunks)]
        for count, took in ((c.dx_tiles, s.gradient.dx), (c.dy_tiles, s.gradient.dy)):
            share = f"{s.case.unit / took / rates.cubed:.0%}"
            row += [f"{count}, {rates.waves(count)}", f"{seconds(took)} ({share})"]
        rows.append([*row, f"{c.added_bytes / 1e9:.2f} GB", seconds(s.gradient.additions)])
    head = ["case", "budget", "chunk", "chunks", "dX: tiles, waves", "dX", "dY: tiles, waves", "dY"]
    return table([*head, "additions", "additions take"], rows)


def _of_steps(steps: list[Step], measured: Measured) -> str:
    rows = []
    for s in steps:
        parts = [_of_kernel(s.statistics) if s.statistics else "-", _of_kernel(s.dS)]
        parts += [seconds(s.gradient.seconds), seconds(s.rest), _range(s.hidden, s.exposed)]
        parts += [seconds(s.floor), seconds(s.cubed)]
        took = measured.get(s.case.headline, {}).get("milliseconds", {}).get("ours", {}).get("both")
        share = f"{s.cubed / s.exposed:.0%} to {s.cubed / s.hidden:.0%}"
        found = "-" if took is None else f"{took:.3g} ms ({s.cubed / took * 1e3:.0%})"
        products = f"{s.case.products} of {s.case.recomputed}"
        rows.append([*_named(s.case), products, *parts, share, found])
    head = ["case", "budget", "products made", "statistics", "dS", "dX, dY and additions", "rest"]
    head += ["step", "products alone", "at the 8192-cubed rate", "share of that rate"]
    return table([*head, "measured (share)"], rows)


def page(records: list[dict[str, Any]], rates: Rates, measured: Measured) -> str:
    """The page."""
    steps = [step(case, records, rates) for case in CASES]
    status = "rates measured" if rates.file else "rates documented"
    status += ", steps measured where it is said" if measured else ", steps not measured"
    l2, stream, cubed = map(_tera, (rates.l2_product, rates.l2_stream, rates.cubed))
    of_cube = f"{rates.product(768) / rates.cubed:.0%}"
    return f"""# Predictions for {rates.gpu}: {status}

`python -m bench.models.predict` computes them. Its rates: {rates.source} (`bench/models/rates.py`).

The first table has the time that each unit of the GPU needs for all tiles of a kernel.
L2 gives a product {l2}B/s and a stream {stream}B/s. No product is faster than the vendor's at the
same K: at K 768 that is {of_cube} of the {cubed}FLOP/s of 8192 cubed.

A kernel's time is a range. At its lower end, the programs on a multiprocessor hide their units in
one another: the slowest unit counts. At its upper end they hide nothing: the slowest unit of the
product counts, and after it the slowest of the rest. The column of memory has what is written:
kept products in 2 bytes an entry, partial statistics and dS. A kernel of kept products reads them,
and multiplies nothing.

{_of_kernels(steps, measured)}

dX and dY are products of the vendor's library, of one chunk of dS at a time. Their tiles are
128 x 256 or half of that, on {rates.processors} multiprocessors. In brackets stands the share of
the 8192-cubed rate. Products of several chunks are added in place to a sum in float32.

{_of_chunks(steps, rates)}

The last table has the whole step beside its matrix products alone. A product of an M x N matrix
has U = 2 M N D operations. A step that keeps nothing makes 6 of them with a teacher, 4 without and
3 for SigLIP. Their time is given twice: as the vendor's library is taken to run them at these
shapes, and at the rate of its 8192-cubed product, which is faster. The rest of a step is the merge
of the partial statistics, the programs of the kernel that leaves a tile to the other, and
{seconds(REST)}, which is an assumption.

{_of_steps(steps, measured)}

A step of the smallest batch, 420 x 350, is {STEP_LAUNCHES} launches. In a CUDA graph each costs
{seconds(rates.launch)}. That is {seconds(STEP_LAUNCHES * rates.launch)} before any kernel does
anything.
"""


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.3g} T"


def default_rates(path: Path = CEILINGS) -> Rates:
    """The rates of the ceilings file where there is one, else the documented ones."""
    return read(path) if path.exists() else Rates()


def headline(path: Path = HEADLINE) -> Measured:
    """The lines of a headline file where there is one."""
    return json.loads(path.read_text())["lines"] if path.exists() else {}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ceilings", type=Path, help="rates of bench/gpu/ceilings.py")
    parser.add_argument("--headline", type=Path, help="times of bench/gpu/headline.py")
    parser.add_argument("--out", type=Path, help="write the page as Markdown")
    arguments = parser.parse_args()
    try:
        rates = read(arguments.ceilings) if arguments.ceilings else default_rates()
    except (OSError, ValueError) as error:
        parser.error(str(error))
    measured = headline(arguments.headline) if arguments.headline else headline()
    if arguments.ceilings and not arguments.headline:
        measured = {}  # of another GPU
    text = page(json.loads((RESULTS / "machine_code.json").read_text()), rates, measured)
    if arguments.out:
        arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
