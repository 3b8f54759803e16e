"""Plot of an ablation: average recall of every row with its error, and its training time."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .report import BASELINE, SIDES, difference, keyed, mean, seconds

COLOURS = {"pairs": "#7f7f7f", "single": "#9ecae1", "hard": "#4292c6", "soft": "#08519c"}
LEGEND = {
    "pairs": "on pairs",
    "single": "one loss for the group",
    "hard": "hard",
    "soft": "hard + soft",
}


def kind(row: dict[str, Any]) -> str:
    """Family of a row, which gives its colour."""
    if row["pairs"]:
        return "pairs"
    if row["loss"] != "hard":
        return "single"
    return "soft" if row["soft"] else "hard"


def save_plot(report: dict[str, Any], path: Path) -> None:
    """Draw the report."""
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "ablation"  # the same file from the same report
    results = keyed(report)
    sides = [side for side in SIDES if any(panel == side for panel, *_ in results)]
    heights = [sum(panel == side for panel, *_ in results) + 1.5 for side in sides]
    figure = Figure(figsize=(11, 0.36 * sum(heights) + 1), layout="constrained")
    grid: Any = figure.subplots(
        len(sides), 2, sharey="row", height_ratios=heights, squeeze=False, width_ratios=(2, 1)
    )
    for (recall_axes, time_axes), side in zip(grid, sides, strict=True):
        shown = [result for (panel, *_), result in results.items() if panel == side]
        draw_recalls(recall_axes, shown, results, side)
        draw_times(time_axes, shown)
    grid[-1][0].set_xlabel("average recall, difference from CLIP, masked, in percent points")
    grid[-1][1].set_xlabel("training time, processor seconds")
    handles = [
        matplotlib.patches.Patch(color=COLOURS[name], label=label) for name, label in LEGEND.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def draw_recalls(axes: Axes, shown: list[dict], results: dict, side: str) -> None:
    """Paired differences from the masked CLIP, with 95 % intervals; the means as labels.

    A row far below the others would squeeze them together: it is written at the edge instead.
    """
    names = [result["curve"] for result in shown]
    found = [difference(results, (side, name, 0.0), (side, BASELINE, 0.0)) for name in names]
    floor = np.quantile([d.mean for d in found], 0.25) - 15
    axes.axvline(0, color="lightgray", zorder=0)
    for place, (result, d) in enumerate(zip(shown, found, strict=True)):
        if d.mean < floor:
            axes.annotate(
                f"\N{LEFTWARDS ARROW} {d.mean:+.1f}",
                (0, place),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=8,
                color=COLOURS[kind(result["setting"]["row"])],
            )
        else:
            reach = [[d.mean - d.low], [d.high - d.mean]] if np.isfinite(d.low) else None
            axes.errorbar(
                d.mean,
                place,
                xerr=reach,
                fmt="o",
                capsize=3,
                color=COLOURS[kind(result["setting"]["row"])],
            )
        axes.annotate(
            f"{mean(result):.1f}",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
    axes.annotate("average", (1.01, 1.01), xycoords="axes fraction", fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title(SIDES[side], fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def draw_times(axes: Axes, shown: list[dict]) -> None:
    """Median training time of every row."""
    times = [seconds(result) for result in shown]
    colours = [COLOURS[kind(result["setting"]["row"])] for result in shown]
    bars = axes.barh(range(len(shown)), times, color=colours, height=0.6)
    axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axes.margins(x=0.15)
    axes.tick_params(labelleft=False, left=False)
    axes.spines[["top", "right"]].set_visible(False)
