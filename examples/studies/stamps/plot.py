"""Plot of the stamps: recall in languages never trained on against the number of those that are."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.studies.protocol.contrasts import contrast
from examples.studies.protocol.runs import PRIMARY

from .report import Key, by_key, languages, losses
from .rows import ONE_PAIR

LONGER = "CLIP on one pair, equal time"
COLOURS = {
    LONGER: "#777777",
    "CLIP on one pair": "#777777",
    "CLIP, masked": "#111111",
    "All": "#e69f00",
    "Hard (1)": "#6baed6",
    "Hard (10)": "#2f7fc1",
    "Hard (expectation)": "#08519c",
    "MFH": "#d1335b",
}
APART = 0.06  # of the height, between two labels
SPREAD = 0.025  # of an octave's width, between the losses' bars


def save_plot(report: dict[str, Any], path: Path) -> None:
    """Draw the report."""
    matplotlib.use("Agg")
    style: Any = {"svg.hashsalt": "stamps", "font.size": 12}  # the same file from the same report
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9, 5.4), layout="constrained")
        draw(figure.subplots(), report)
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw(axes: Axes, report: dict[str, Any]) -> None:
    """A line for each loss and its name at the end; bars for differences from CLIP on one pair."""
    results, counts, names = by_key(report), languages(report, "steps"), losses(report)
    octaves, ends = np.log2(counts), {}
    for place, name in enumerate(names):
        means, reach = [], []
        for count in counts:
            own = results[name, count, "steps"]["metrics"][PRIMARY]
            found = contrast(own, results[ONE_PAIR.name, count, "steps"]["metrics"][PRIMARY])
            means.append(np.mean(own))
            reach.append(found.high - found.mean)
        shifted = octaves + SPREAD * (place - len(names) / 2)
        style: Any = {"color": COLOURS.get(name, "black"), "marker": "o", "ms": 4, "lw": 1.8}
        axes.errorbar(shifted, means, yerr=reach, elinewidth=0.9, **style)
        ends[name] = float(means[-1])
    ends[LONGER] = draw_longer(axes, results, languages(report, "time"))
    top = max(ends.values()) * 1.22
    axes.set_ylim(0, top)
    axes.set_xlim(-0.2, octaves[-1] + 0.2)
    label_lines(axes, ends, float(octaves[-1]), APART * top)
    close = len(counts) > 1 and octaves[-1] - octaves[-2] < 0.5
    last = f"\n{counts[-1]}, all" if close else f"{counts[-1]}, all"
    axes.set_xticks(octaves, [*map(str, counts[:-1]), last])
    axes.set_xlabel("languages that are trained on")
    axes.set_ylabel("average recall of the image, %")
    axes.set_title("Recall with captions in six languages that were never trained on", loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def draw_longer(axes: Axes, results: dict[Key, dict[str, Any]], counts: list[int]) -> float:
    """CLIP on one pair with as much time as MFH: a dashed line, whose last value it returns."""
    found = [results[ONE_PAIR.name, count, "time"]["metrics"][PRIMARY] for count in counts]
    means = [float(np.mean(values)) for values in found]
    style: Any = {"color": COLOURS[LONGER], "ls": "--", "marker": "o", "mfc": "white", "ms": 5}
    axes.plot(np.log2(counts), means, zorder=1, **style)
    return means[-1]


def label_lines(axes: Axes, ends: dict[str, float], at: float, apart: float) -> None:
    """The name and the last value of every line, right of its end."""
    for name, height in spread(ends, apart).items():
        colour = COLOURS.get(name, "black")
        axes.annotate(
            f"{name}  {ends[name]:.1f}",
            (at + 0.1, ends[name]),
            (at + 0.45, height),
            va="center",
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def spread(ends: dict[str, float], apart: float) -> dict[str, float]:
    """Heights of labels, each near the end of its line and none over another."""
    order = sorted(ends, key=ends.__getitem__)
    heights = np.array([ends[name] for name in order])
    for _ in range(100):
        for i in range(1, len(heights)):
            gap = apart - (heights[i] - heights[i - 1])
            if gap > 1e-6:
                heights[i] += gap / 2
                heights[i - 1] -= gap / 2
    return dict(zip(order, heights.tolist(), strict=True))
