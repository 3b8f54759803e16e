"""How the operator walks the plane: tiles, row and column statistics, the block of positives."""

from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from docs.figures import DRAWN, IMAGE, QUIET, TEXT

ROWS, COLUMNS, HEIGHT, WIDTH = 8, 10, 2, 2.5


def draw() -> Figure:
    """The plane of similarities with one tile marked, and what is stored."""
    figure, axes = pyplot.subplots(figsize=(6.4, 3.9), layout="constrained")
    for r in range(4):
        for c in range(4):
            place = (c * WIDTH, ROWS - (r + 1) * HEIGHT)
            current = (r, c) == (1, 2)
            axes.add_patch(
                Rectangle(
                    place,
                    WIDTH,
                    HEIGHT,
                    facecolor=DRAWN if current else "none",
                    edgecolor="gray",
                    linestyle="-" if current else ":",
                )
            )
    for column, row, width, height in ((0, 6.5, 2, 1.5), (2, 4.2, 3.4, 2.3), (5.4, 0, 4.6, 4.2)):
        axes.add_patch(Rectangle((column, row), width, height, facecolor=IMAGE, alpha=0.35))
    _strip(axes, (10.4, 0), (0.5, ROWS), TEXT, "row statistics\n$n$, $u$, $t$: 3 M numbers")
    _strip(axes, (0, -0.9), (COLUMNS, 0.5), TEXT, "")
    axes.text(5, -1.3, "column statistics: 3 N numbers", ha="center", va="top", color=TEXT)
    axes.add_patch(Rectangle((11.4, 5.6), 0.6, 0.5, facecolor=IMAGE, alpha=0.35))
    axes.text(12.2, 5.85, "positive pairs:\nP numbers are kept", va="center", color=IMAGE)
    axes.add_patch(Rectangle((11.4, 2.0), 0.6, 0.5, facecolor=DRAWN))
    axes.text(12.2, 2.25, "the tile at hand", va="center")
    axes.add_patch(Rectangle((11.4, 0.8), 0.6, 0.5, facecolor="none", edgecolor="gray", ls=":"))
    axes.text(12.2, 1.05, "in memory if it fits the budget", va="center", color="gray")
    axes.text(-0.3, ROWS / 2, "M images", rotation=90, ha="right", va="center")
    axes.text(COLUMNS / 2, ROWS + 0.2, "N texts", ha="center", va="bottom")
    axes.set(xlim=(-1, 18), ylim=(-2, ROWS + 1), aspect="equal")
    axes.axis("off")
    return figure


def _strip(axes, place, size, color, label) -> None:
    axes.add_patch(Rectangle(place, *size, facecolor=QUIET, edgecolor=color))
    if label:
        axes.text(place[0] + 1.0, place[1] + size[1], label, va="top", color=color)
