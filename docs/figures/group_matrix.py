"""The group matrix of a ragged batch, and what one row's loss reads of it."""

import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from docs.figures import DRAWN, IMAGE, QUIET
from mxm_kernels import draw_selection

IMAGES = [0, 0, 0, 1, 1, 2, 2, 2, 2]  # instance of every image row
TEXTS = [0, 0, 1, 1, 1, 1, 2, 2, 2]


def draw() -> Figure:
    """Left the positives; in the middle and right two rounds of masked random pair selection."""
    figure, axes = pyplot.subplots(1, 3, figsize=(8, 3.3), layout="constrained")
    features = torch.ones(len(IMAGES), 1), torch.ones(len(TEXTS), 1)
    generator = torch.Generator().manual_seed(4)
    drawn, _ = draw_selection((IMAGES, TEXTS), *features, rounds=2, generator=generator)
    _panel(axes[0], None, "positive pairs of three instances")
    for round_ in range(2):
        _panel(axes[1 + round_], drawn[round_].tolist(), f"round {round_ + 1}, image to text")
    patches = [
        Patch(color=IMAGE, label="positive"),
        Patch(color=DRAWN, label="drawn"),
        Patch(facecolor="white", edgecolor="gray", hatch="////", label="masked out"),
        Patch(color=QUIET, label="negative"),
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _panel(axes: Axes, drawn: list[int] | None, title: str) -> None:
    positive = torch.tensor(IMAGES)[:, None] == torch.tensor(TEXTS)
    cells = positive.int()
    if drawn is not None:
        cells = cells * 2
        for i, j in enumerate(drawn):
            cells[i, j] = 3
    axes.imshow(cells.numpy(), cmap=ListedColormap([QUIET, IMAGE, "white", DRAWN]), vmin=0, vmax=3)
    for i, j in (cells == 2).nonzero().tolist():
        place = (j - 0.5, i - 0.5)
        axes.add_patch(
            Rectangle(place, 1, 1, fill=False, hatch="////", edgecolor="gray", linewidth=0)
        )
    axes.set_xticks([k - 0.5 for k in range(len(TEXTS) + 1)], minor=True)
    axes.set_yticks([k - 0.5 for k in range(len(IMAGES) + 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    axes.set(xlabel="texts", ylabel="images")
    axes.set_title(title, fontsize=9)
