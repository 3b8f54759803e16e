"""Time and memory of a step against the size of the batch: PyTorch eager, torch.compile, ours.

The README shows the committed time_and_memory.svg beside this file. ``python -m docs.figures
time_and_memory docs/figures`` writes it anew, and a test holds it to the benchmark's results.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from bench import words
from bench.cases import LARGE
from bench.providers.dense import COMPILED, DENSE
from bench.results_file import Record, read
from docs.figures import IMAGE, TEXT

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "amd-epyc-avx2-2-cores.json"
COLORS = {DENSE: TEXT, COMPILED: "#6b4c9a", "native": IMAGE}
NAMES = {DENSE: words.EAGER, COMPILED: words.COMPILE, "native": "mxm_kernels"}
IMAGES = {300: "300", 1_000: "1,000", 4_000: "4,000", 16_000: "16,000"}
Points = list[tuple[float, float]]


class Panel(NamedTuple):
    """What is written on a panel; labels are at (images, value), left or right of it."""

    name: str
    title: str
    ticks: dict[float, str]
    labels: dict[str, tuple[float, float, str]]


TIME = Panel(
    "time",
    "time of a step",
    {0.01: "10 ms", 0.1: "100 ms", 1.0: "1 s", 10.0: "10 s"},
    {
        DENSE: (3_700, 15.0, "right"),
        COMPILED: (2_500, 3.1, "right"),
        "native": (22_000, 0.06, "right"),
    },
)
MEMORY = Panel(
    "memory",
    "memory of a step",
    {1 << 20: "1 MiB", 32 << 20: "32 MiB", 1 << 30: "1 GiB"},
    {
        DENSE: (3_000, 2e9, "right"),
        COMPILED: (22_000, 8.5e7, "right"),
        "native": (22_000, 1.5e7, "right"),
    },
)


def draw() -> Figure:
    """Two panels: seconds and bytes against the images of a batch."""
    figure = pyplot.figure(figsize=(6.0, 3.2), facecolor="white")
    with pyplot.rc_context({"font.size": 12}):
        _panel(figure.add_axes((0.125, 0.17, 0.355, 0.72)), TIME, lines(_seconds))
        _panel(figure.add_axes((0.625, 0.17, 0.355, 0.72)), MEMORY, lines(_bytes))
    return figure


def lines(value: Callable[[Record], float | None]) -> dict[str, Points]:
    """Provider: (images, value) of every size that was measured."""
    found: dict[str, dict[float, float]] = {}
    for record in chosen(read(RESULTS)):
        number = value(record)
        if number is not None:
            found.setdefault(record["provider"], {}).setdefault(record["case"]["M"], number)
    return {name: sorted(found[name].items()) for name in COLORS if name in found}


def chosen(records: list[Record]) -> list[Record]:
    """The records that differ from the large batch in its size alone."""
    return [record for record in records if _options(record["case"]) == _options(asdict(LARGE))]


def _options(case: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in case.items() if name not in {"M", "N", "name"}}


def _seconds(record: Record) -> float | None:
    return record["seconds"]["both"]["median"] if "seconds" in record else None


def _bytes(record: Record) -> float | None:
    return record.get("peak_bytes")


def _panel(axes: Axes, panel: Panel, drawn: dict[str, Points]) -> None:
    for provider, points in drawn.items():
        color, (x, y, side) = COLORS[provider], panel.labels[provider]
        style: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 2, "color": color}
        name = f"{panel.name}-{provider}".replace(" ", "-")  # the line's in the SVG, for its test
        axes.plot(*zip(*points, strict=True), gid=name, **style)
        axes.text(
            x,
            y,
            NAMES[provider],
            fontsize=10.5,
            ha=side,
            va="center",
            color=color,
            fontweight="bold",
        )
    axes.set(xscale="log", yscale="log", xlim=(190, 23_000), xlabel="images in the batch")
    axes.set_title(panel.title, fontsize=13, loc="left")
    for axis, ticks in ((axes.xaxis, IMAGES), (axes.yaxis, panel.ticks)):
        axis.set_major_locator(FixedLocator(list(ticks)))
        axis.set_major_formatter(FixedFormatter(list(ticks.values())))
        axis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
