"""Plot of the stamps: recall in languages never trained on against the number of those that are."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .report import by_key, interval, languages, losses

COLOURS = {
    "CLIP on one pair": "#777777",
    "CLIP, masked": "#111111",
    "All": "#e69f00",
    "Hard (1)": "#9ecae1",
    "Hard (10)": "#4292c6",
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
    """A line for each loss with its intervals, and its name at the end."""
    results, counts, names = by_key(report), languages(report, "steps"), losses(report)
    octaves = np.log2(counts)
    ends = {}
    for place, name in enumerate(names):
        found = [interval(results[name, count, "steps"]) for count in counts]
        means = np.array([f.mean for f in found])
        reach = [
            np.clip(means - [f.low for f in found], 0, means),
            [f.high - f.mean for f in found],
        ]
        shifted = octaves + SPREAD * (place - len(names) / 2)
        colour = COLOURS.get(name, "black")
        axes.errorbar(
            shifted, means, yerr=reach, color=colour, marker="o", ms=4, lw=1.8, elinewidth=0.8
        )
        ends[name] = means[-1]
    top = max(ends.values()) * 1.12
    axes.set_ylim(0, top)
    for name, height in spread(ends, APART * top).items():
        axes.annotate(
            f"{name}  {ends[name]:.0f}",
            (octaves[-1], ends[name]),
            (octaves[-1] + 0.35, height),
            va="center",
            color=COLOURS.get(name, "black"),
            arrowprops={"arrowstyle": "-", "color": COLOURS.get(name, "black"), "lw": 0.5},
            annotation_clip=False,
        )
    axes.set_xticks(octaves[:-1], [str(count) for count in counts[:-1]])
    axes.set_xlim(-0.2, octaves[-1] + 0.3)
    axes.set_xlabel("training languages: captions of each image")
    axes.set_ylabel("average recall of the image, %")
    axes.set_title("Recall for captions in six languages never trained on", loc="left")
    axes.spines[["top", "right"]].set_visible(False)


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
