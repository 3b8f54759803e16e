"""Figure of a run: loss curve, metrics before and after, and queries with their best answers."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image

from ..data.instances import ImageSource
from ..files import write_whole
from .config import Config
from .retrieval import DIRECTIONS, METRICS, Metrics, title_of
from .train import Result

RIGHT, WRONG = "#1a9850", "#bdbdbd"
BEFORE, AFTER = "#c6dbef", "#2171b5"
QUERIES, ANSWERS = 4, 5
CENTRED: Any = {"ha": "center", "va": "center"}


def save_figure(result: Result, config: Config) -> Path:
    """Draw the figure and save it in the output folder."""
    matplotlib.use("Agg")
    figure = Figure(figsize=(13, 13), layout="constrained")
    panels: Any = figure.subfigures(3, 1, height_ratios=(3, 4.6, 4.2), hspace=0.03)
    count, data = len(result.material.instances), f"{config.data}, {config.eval_split} split"
    panels[0].suptitle(f"{config.loss.upper()} on {data}: {count} instances", fontsize=13)
    curves = panels[0].subplots(1, 1 + len(DIRECTIONS))
    draw_losses(curves[0], result.losses)
    for axes, direction in zip(curves[1:], DIRECTIONS, strict=True):
        title = title_of(direction, config.aggregate).capitalize()
        draw_metrics(axes, direction, title, result.before, result.after)
    for axes in curves:
        axes.spines[["top", "right"]].set_visible(False)
    draw_text_queries(panels[1], result)
    draw_image_queries(panels[2], result)
    path = config.output_path / "finetune.png"
    write_whole(path, lambda file: figure.savefig(file, dpi=110, format="png"))
    return path


def draw_losses(axes: Axes, losses: list[float]) -> None:
    """Loss of every step, and its running mean."""
    steps, width = np.arange(1, len(losses) + 1), max(len(losses) // 20, 1)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(steps, losses, color=BEFORE, lw=1, label="each step")
    axes.plot(steps[width - 1 :], smooth, color=AFTER, lw=2, label=f"mean of {width} steps")
    axes.set(title="Training loss", xlabel="optimiser step", ylabel="loss")
    axes.legend(frameon=False)


def draw_metrics(axes: Axes, direction: str, title: str, before: Metrics, after: Metrics) -> None:
    """Bars of the metrics before and after, with their values."""
    places = np.arange(len(METRICS))
    shown = (before, "before", BEFORE, -0.2), (after, "after", AFTER, 0.2)
    for metrics, label, colour, offset in shown:
        values = [metrics[direction][name] for name in METRICS]
        bars = axes.bar(places + offset, values, 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.1f", fontsize=9, padding=2)
    axes.set_xticks(places, METRICS)
    axes.set(title=title, ylabel="percent", ylim=(0, 108))
    axes.legend(frameon=False, loc="upper left")


def draw_text_queries(panel: SubFigure, result: Any, queries: int = QUERIES) -> None:
    """Rows of a caption and the five images nearest to it.

    Args:
        panel: where to draw.
        result: a :class:`Result`, or what has its material, images and texts.
        queries: rows at most.

    """
    panel.suptitle("Caption and its five best images (green: right)", fontsize=12)
    data, instances = result.material.evaluation, result.material.instances
    sources = [source for instance in instances for source in instance.images]
    shown = evenly_spaced(queries, len(instances))
    ratios = (1.6, *[1] * ANSWERS)
    grid = panel.subplots(len(shown), ANSWERS + 1, width_ratios=ratios, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for row, place in zip(grid, shown, strict=True):
        query = int((data.text_ids == place).nonzero()[0])
        caption = textwrap.fill(textwrap.shorten(instances[place].captions[0], 96), 24)
        row[0].text(0.5, 0.5, caption, **CENTRED, fontsize=11)
        best = (result.images @ result.texts[query]).argsort(descending=True)[:ANSWERS]
        for axes, answer in zip(row[1:], best.tolist(), strict=False):
            right = data.image_ids[answer] == place
            draw_image(axes, sources[answer], RIGHT if right else WRONG)


def draw_image_queries(panel: SubFigure, result: Result) -> None:
    """Columns of an image and the five captions nearest to it."""
    panel.suptitle("Image and its five best captions (green, ticked: right)", fontsize=12)
    data, instances = result.material.evaluation, result.material.instances
    captions = [caption for instance in instances for caption in instance.captions]
    shown = evenly_spaced(QUERIES, len(instances))
    grid = panel.subplots(2, len(shown), height_ratios=(1, 1.5), squeeze=False)
    for (image_axes, text_axes), place in zip(grid.T, shown, strict=True):
        query = int((data.image_ids == place).nonzero()[0])
        draw_image(image_axes, instances[place].images[0], "black")
        text_axes.axis("off")
        best = (result.texts @ result.images[query]).argsort(descending=True)[:ANSWERS]
        for line, answer in enumerate(best.tolist()):
            right, caption = data.text_ids[answer] == place, textwrap.shorten(captions[answer], 38)
            caption = f"\N{CHECK MARK} {caption}" if right else caption
            style = {"color": RIGHT, "weight": "bold"} if right else {"color": "dimgray"}
            text_axes.text(0.5, 0.92 - 0.2 * line, caption, **CENTRED, **style, fontsize=10)


def evenly_spaced(count: int, total: int) -> list[int]:
    """Instances to show: not chosen by how well they do."""
    shown = min(count, total)
    return [(2 * i + 1) * total // (2 * shown) for i in range(shown)]


def draw_image(axes: Axes, source: ImageSource, colour: str) -> None:
    """Draw an image in a frame."""
    image = source.open()
    image.thumbnail((160, 160), Image.Resampling.LANCZOS)
    axes.imshow(image)
    axes.axis("on")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=4 if colour == RIGHT else 1.5)
