"""Scaling plots made of records: time and memory against batch, against R, against threads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench import floor, words
from bench.results_file import Record, timed

_FAMILY = ("D", "views", "captions", "rounds", "teacher", "dtype", "threads", "budget")
Point = tuple[float, float]
Lines = dict[str, list[Point]]


def _milliseconds(record: Record) -> float:
    return record["seconds"]["both"]["median"] * 1e3


def _mebibytes(record: Record) -> float:
    return record["peak_bytes"] / 2**20


def _similarities(record: Record) -> float:
    return record["case"]["M"] * record["case"]["N"]


def _option(name: str, record: Record) -> float:
    return record["case"][name]


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
        families[tuple(case.get(name) for name in _FAMILY)].append(record)
    if not families:
        return []
    return max(families.values(), key=lambda family: len({r["case"]["M"] for r in family}))


def group_members(records: list[Record], group: str, option: str) -> list[Record]:
    """The timed records of a group whose cases differ in an option."""
    return [r for r in timed(records) if r["group"] == group and r["case"][option] is not None]


def title(records: list[Record]) -> str:
    """What the cases of a plot have in common: their size, or its D, and options."""
    names = [record["case"]["name"].split(", ") for record in records]
    shared = [part for part in names[0] if all(part in name for name in names)]
    sizes = {record["case"]["M"] for record in records}
    return ", ".join(shared if len(sizes) == 1 else [f"D {records[0]['case']['D']}", *shared])


class Plot(NamedTuple):
    """The lines of a plot, and what is written on it."""

    lines: Lines
    title: str
    x_label: str
    y_label: str


def plots(records: list[Record]) -> dict[str, Plot]:
    """Every plot that the records have points for, by name."""
    every = largest_family(timed(records))
    measured = largest_family([r for r in records if "peak_bytes" in r])
    time, memory = "forward + backward, ms", "peak over inputs and gradients, MiB"
    # name: records, x, y, labels
    chosen: dict[str, tuple] = {
        "time-batch": (every, _similarities, _milliseconds, "images x texts", time),
        "memory-batch": (measured, _similarities, _mebibytes, "images x texts", memory),
    }
    groups = [r["group"] for r in records if r["group"].startswith("rounds")]
    options = {"threads": ("threads", "threads")}
    options |= dict.fromkeys(groups, ("rounds", "rounds R"))
    for group, (option, label) in options.items():
        members = group_members(records, group, option)
        x = partial(_option, option)
        chosen["-".join(group.split())] = members, x, _milliseconds, label, time
    drawn = {
        name: Plot(_lines(members, x, y), title(members), *labels)
        for name, (members, x, y, *labels) in chosen.items()
        if members
    }
    return {k: v for k, v in drawn.items() if any(len(points) > 1 for points in v.lines.values())}


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
    from matplotlib.ticker import NullLocator

    written = []
    for name, (lines, heading, x_label, y_label) in plots(records).items():
        figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        for provider, points in lines.items():
            style: dict[str, Any] = (
                {"color": "black", "linestyle": "--"} if provider == floor.NAME else {}
            )
            axes.plot(
                *zip(*points, strict=True),
                marker="o",
                markersize=4,
                label=words.name(provider),
                **style,
            )
        axes.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
        axes.set_title(heading, fontsize="medium")
        if "batch" not in name:  # few values, each of them told
            values = sorted({x for points in lines.values() for x, _ in points})
            axes.set_xticks(values, [f"{value:g}" for value in values])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", frameon=False)
        path = folder / f"{prefix}-{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
        written.append(path)
    return written
