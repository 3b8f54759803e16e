"""One instance, its views and captions: the pairs of CLIP and the pairs of multifold training."""

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.figures import IMAGE, TEXT

VIEWS, CAPTIONS = 4, 3


def draw() -> Figure:
    """Left one pair, right every view with every caption."""
    figure, axes = pyplot.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
    _panel(axes[0], [(0, 0)], "single-fold: one pair is drawn, the rest waits")
    every = [(i, j) for i in range(VIEWS) for j in range(CAPTIONS)]
    _panel(axes[1], every, f"multifold: {VIEWS} x {CAPTIONS} positive pairs at once")
    return figure


def _panel(axes: Axes, pairs: list[tuple[int, int]], title: str) -> None:
    views = [1 - (i + 0.5) / VIEWS for i in range(VIEWS)]
    captions = [1 - (j + 0.5) / CAPTIONS for j in range(CAPTIONS)]
    used = {i for i, _ in pairs}, {j for _, j in pairs}
    for i, j in pairs:
        axes.plot([0.3, 0.7], [views[i], captions[j]], color="black", linewidth=0.8, zorder=1)
    for i, y in enumerate(views):
        _label(axes, 0.27, y, f"view {i + 1}", IMAGE, i in used[0], "right")
    for j, y in enumerate(captions):
        _label(axes, 0.73, y, f"caption {j + 1}", TEXT, j in used[1], "left")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_title(title, fontsize=9)
    axes.axis("off")


def _label(axes: Axes, x: float, y: float, text: str, color: str, used: bool, side: str) -> None:
    alpha = 1.0 if used else 0.25
    dot = x + (0.03 if side == "right" else -0.03)
    axes.scatter([dot], [y], s=45, color=color, alpha=alpha, zorder=2)
    axes.text(x, y, text, ha=side, va="center", color=color, alpha=alpha)
