"""The study's two charts, drawn from its JSON file."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .experiment import WEIGHT_BINS
from .study import CONDITIONS, FULL, NO_SA
from .summary import Mean, Runs

COLOURS = ("#08519c", "#4292c6", "#9ecae1", "#fdae6b", "#bdbdbd")
WEIGHED = (FULL, NO_SA)
CLEAN, RIGHT, NOISE = "#969696", "#2171b5", "#d94801"
STYLE: dict[Any, Any] = {"svg.fonttype": "path", "svg.hashsalt": "cma_clip", "font.size": 10}


def save_figures(report: dict[str, Any], folder: Path) -> None:
    """Draw both charts."""
    runs = Runs(report)
    with rc_context(STYLE):
        save(ablation(runs, 100 * report["options"]["precision"]), folder / "ablation.svg")
        save(text_weight(runs, report["options"]["noise"]), folder / "text_weight.svg")


def save(figure: Figure, path: Path) -> None:
    """Write an SVG file that is the same in every run."""
    figure.savefig(path, metadata={"Date": None})


def ablation(runs: Runs, precision: float) -> Figure:
    """Average recall and accuracy of every variant, with standard errors and the seeds."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    titles = {"recall": f"Recall at {precision:g} % precision", "accuracy": "Accuracy"}
    axes: Any = figure.subplots(1, 2)
    for panel, (metric, title) in zip(axes, titles.items(), strict=True):
        draw_bars(panel, runs, metric)
        panel.set(title=title, ylabel="percent, mean of the tasks")
    axes[0].figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    return figure


def draw_bars(axes: Axes, runs: Runs, metric: str) -> None:
    """Bars by condition; the bars' lines are standard errors, the dots the seeds."""
    width = 0.8 / len(runs.variants)
    for number, variant in enumerate(runs.variants):
        places = np.arange(len(CONDITIONS)) + (number - (len(runs.variants) - 1) / 2) * width
        values = [runs.values(c, variant, metric, "average") for c in CONDITIONS]
        means = [Mean.of(v) for v in values]
        axes.bar(
            places,
            [m.value for m in means],
            0.9 * width,
            yerr=[m.error for m in means],
            color=COLOURS[number % len(COLOURS)],
            ecolor="black",
            capsize=3,
            label=variant,
        )
        for place, dots in zip(places, values, strict=True):
            axes.scatter([place] * len(dots), dots, s=8, color="black", alpha=0.45, zorder=3)
    axes.set_xticks(range(len(CONDITIONS)), ["without noise", "with noise"])
    axes.spines[["top", "right"]].set_visible(False)


def text_weight(runs: Runs, modality: str) -> Figure:
    """Weight of the text for right and noisy pairs of every task, all seeds."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes: Any = figure.subplots(len(WEIGHED), len(runs.tasks), sharex=True, squeeze=False)
    for row, variant in zip(axes, WEIGHED, strict=True):
        for panel, task in zip(row, runs.tasks, strict=True):
            draw_weights(panel, runs, variant, task, modality)
            panel.set_title(f"{variant}, {task} task")
        row[0].set_ylabel("share of the test pairs")
    for panel in axes[-1]:
        panel.set_xlabel("weight of the text, 1 - \N{GREEK SMALL LETTER LAMDA}")
    return figure


def draw_weights(axes: Axes, runs: Runs, variant: str, task: str, modality: str) -> None:
    """Histograms of the weight for right and noisy pairs, and their means."""
    edges = np.linspace(0, 1, WEIGHT_BINS + 1)
    shown = (
        ("clean", "right", CLEAN, "trained without noise"),
        ("noisy", "right", RIGHT, f"with noise, {modality} is its own"),
        ("noisy", "noise", NOISE, f"with noise, {modality} is noise"),
    )
    for condition, kind, colour, label in shown:
        shares = runs.text_weight_histogram(condition, variant, task, kind)
        mean = Mean.of(runs.text_weights(condition, variant, task, kind))
        axes.stairs(shares, edges, color=colour, lw=2, label=f"{label}: {mean.plain(3)}")
        axes.axvline(mean.value, ymax=0.68, color=colour, lw=1, ls="--")
    axes.set_ylim(0, 1.45 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=9, loc="upper center")
    axes.spines[["top", "right"]].set_visible(False)
