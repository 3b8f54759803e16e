"""Figure of a run: loss curve, metrics before and after, and queries with their best answers."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from .config import Config
from .data.instances import ImageSource
from .retrieval import DIRECTIONS, METRICS, Metrics
from .train import Result

RIGHT, WRONG = "#1a9850", "#bdbdbd"
BEFORE, AFTER = "#c6dbef", "#2171b5"
QUERIES, ANSWERS = 4, 5


def save_figure(result: Result, config: Config) -> Path:
    """Draw the figure and save it in the output folder."""
    matplotlib.use("Agg")
    figure = Figure(figsize=(13, 13), layout="constrained")
    panels: Any = figure.subfigures(3, 1, height_ratios=(3, 4.6, 4.2), hspace=0.03)
    top, middle, bottom = panels
    top.suptitle(
        f"{config.loss.upper()} on {config.data}, {config.eval_split} split: "
        f"{len(result.material.instances)} instances",
        fontsize=13,
    )
    loss_axes, *recall_axes = top.subplots(1, 3)
    draw_losses(loss_axes, result.losses)
    for axes, direction in zip(recall_axes, DIRECTIONS, strict=True):
        draw_metrics(axes, direction, result.before, result.after)
    draw_text_queries(middle, result)
    draw_image_queries(bottom, result)
    path = config.output_path / "finetune.png"
    figure.savefig(path, dpi=110)
    return path


def draw_losses(axes: Axes, losses: list[float]) -> None:
    """Loss of every step, and its running mean."""
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color=BEFORE, lw=1, label="each step")
    width = max(len(losses) // 20, 1)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(steps[width - 1 :], smooth, color=AFTER, lw=2, label=f"mean of {width} steps")
    axes.set(title="Training loss", xlabel="optimiser step", ylabel="loss")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def draw_metrics(axes: Axes, direction: str, before: Metrics, after: Metrics) -> None:
    """Bars of the metrics before and after, with their values."""
    places = np.arange(len(METRICS))
    for offset, metrics, colour, label in (
        (-0.2, before, BEFORE, "before"),
        (0.2, after, AFTER, "after"),
    ):
        bars = axes.bar(
            places + offset,
            [metrics[direction][m] for m in METRICS],
            0.38,
            color=colour,
            label=label,
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=9, padding=2)
    axes.set_xticks(places, METRICS)
    axes.set(title=direction.replace("_", " ").capitalize(), ylabel="percent", ylim=(0, 108))
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)


def evenly_spaced(count: int, total: int) -> list[int]:
    """Instances to show: not chosen by how well they do."""
    shown = min(count, total)
    return [(2 * i + 1) * total // (2 * shown) for i in range(shown)]


def ranked(result: Result, from_text: bool, query: int) -> tuple[list[int], list[bool]]:
    """Find the best answers to a query, and which of them are right."""
    data = result.material.evaluation
    if from_text:
        scores, right = result.images @ result.texts[query], data.image_ids == data.text_ids[query]
    else:
        scores, right = result.texts @ result.images[query], data.text_ids == data.image_ids[query]
    best = scores.argsort(descending=True)[:ANSWERS].tolist()
    return best, [bool(right[i]) for i in best]


def draw_text_queries(panel: SubFigure, result: Result) -> None:
    """Rows of a caption and the five images nearest to it."""
    panel.suptitle("Caption and its five best images (green: right)", fontsize=12)
    sources = [s for instance in result.material.instances for s in instance.images]
    captions = [c for instance in result.material.instances for c in instance.captions]
    instances = evenly_spaced(QUERIES, len(result.material.instances))
    grid = panel.subplots(
        len(instances), ANSWERS + 1, width_ratios=(1.6, *[1] * ANSWERS), squeeze=False
    )
    for row, instance in zip(grid, instances, strict=True):
        query = int((result.material.evaluation.text_ids == instance).nonzero()[0])
        draw_caption(row[0], captions[query], width=24)
        answers, right = ranked(result, True, query)
        for axes in row[1:]:
            axes.axis("off")
        for axes, answer, correct in zip(row[1:], answers, right, strict=False):
            draw_image(axes, sources[answer], RIGHT if correct else WRONG)


def draw_image_queries(panel: SubFigure, result: Result) -> None:
    """Columns of an image and the five captions nearest to it."""
    panel.suptitle("Image and its five best captions (green, ticked: right)", fontsize=12)
    sources = [s for instance in result.material.instances for s in instance.images]
    captions = [c for instance in result.material.instances for c in instance.captions]
    instances = evenly_spaced(QUERIES, len(result.material.instances))
    grid = panel.subplots(2, len(instances), height_ratios=(1, 1.5), squeeze=False)
    for (image_axes, text_axes), instance in zip(grid.T, instances, strict=True):
        query = int((result.material.evaluation.image_ids == instance).nonzero()[0])
        draw_image(image_axes, sources[query], "black")
        text_axes.axis("off")
        answers, right = ranked(result, False, query)
        for place, (answer, correct) in enumerate(zip(answers, right, strict=True)):
            text_axes.text(
                0.5,
                0.92 - 0.2 * place,
                ("\N{CHECK MARK} " if correct else "") + textwrap.shorten(captions[answer], 38),
                color=RIGHT if correct else "dimgray",
                weight="bold" if correct else "normal",
                ha="center",
                va="center",
                fontsize=10,
            )


def draw_caption(axes: Axes, caption: str, width: int) -> None:
    """Write a caption as a query."""
    axes.axis("off")
    text = textwrap.fill(textwrap.shorten(caption, 4 * width), width)
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=11)


def draw_image(axes: Axes, source: ImageSource, colour: str) -> None:
    """Draw an image in a frame."""
    image = source.open()
    image.thumbnail((160, 160), Image.Resampling.LANCZOS)
    axes.imshow(image)
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=4 if colour == RIGHT else 1.5)
