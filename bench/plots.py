"""Scaling plots made of records: time and memory against batch, against R, against threads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.results_file import Record, timed

_FAMILY = ("D", "views", "captions", "rounds", "teacher", "dtype", "threads")
Point = tuple[float, float]
Lines = dict[str, list[Point]]


def _milliseconds(record: Record) -> float:
    return record["seconds"]["both"]["median"] * 1e3


def _mebibytes(record: Record) -> float:
    return record["peak_bytes"] / 2**20


def _lines(records: list[Record], x: Callable[[Record], float], y: Callable[[Record], float]):
    lines: dict[str, dict[float, float]] = defaultdict(dict)
    for record in records:
        lines[record["provider"]].setdefault(x(record), y(record))
    return {name: sorted(points.items()) for name, points in lines.items()}


def largest_family(records: list[Record]) -> list[Record]:
    """The records that differ in the batch alone, of the options with most batches."""
    families: dict[tuple, list[Record]] = defaultdict(list)
    for record in records:
        case = record["case"]
        families[tuple(case[name] for name in _FAMILY)].append(record)
    if not families:
        return []
    return max(families.values(), key=lambda family: len({r["case"]["M"] for r in family}))


def batch_lines(records: list[Record], y: Callable[[Record], float]) -> Lines:
    """Against the number of similarities, M N."""
    return _lines(largest_family(records), lambda r: r["case"]["M"] * r["case"]["N"], y)


def group_lines(records: list[Record], group: str, option: str) -> Lines:
    """Against an option that the cases of a group differ in."""
    members = [r for r in timed(records) if r["group"] == group and r["case"][option] is not None]
    return _lines(members, lambda r: r["case"][option], _milliseconds)


def plots(records: list[Record]) -> dict[str, tuple[Lines, str, str]]:
    """Lines and axis labels of every plot that the records have points for, by name."""
    measured = [r for r in records if "peak_bytes" in r]
    time = "forward + backward, ms"
    drawn = {
        "time-batch": (batch_lines(timed(records), _milliseconds), "images x texts", time),
        "memory-batch": (
            batch_lines(measured, _mebibytes),
            "images x texts",
            "peak over inputs and gradients, MiB",
        ),
        "threads": (group_lines(records, "threads", "threads"), "threads", time),
    }
    for group in dict.fromkeys(r["group"] for r in records if r["group"].startswith("rounds")):
        name = "-".join(group.split())
        drawn[name] = (group_lines(records, group, "rounds"), "rounds R", time)
    return {k: v for k, v in drawn.items() if any(len(points) > 1 for points in v[0].values())}


def draw(records: list[Record], folder: Path, prefix: str) -> list[Path]:
    """Write the plots as SVG; none without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    # Fixed identifiers and no date: the same results give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "mxm_kernels"
    from matplotlib import pyplot

    written = []
    for name, (lines, x_label, y_label) in plots(records).items():
        figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        for provider, points in lines.items():
            style: dict[str, Any] = (
                {"color": "black", "linestyle": "--"} if provider == "floor" else {}
            )
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=provider, **style)
        axes.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", frameon=False)
        path = folder / f"{prefix}-{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
        written.append(path)
    return written
