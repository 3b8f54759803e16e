"""Which negatives a row learns from at different temperatures."""

import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

TEMPERATURES = (0.01, 0.03, 0.07, 0.3)
NEGATIVES = 350


def draw() -> Figure:
    """Share of the gradient of the hardest negatives, cosines of a random row in 64 dimensions."""
    generator = torch.Generator().manual_seed(1)
    cosines = torch.randn(NEGATIVES, generator=generator) / 8
    figure, axes = pyplot.subplots(figsize=(5.2, 2.9), layout="constrained")
    for temperature in TEMPERATURES:
        shares = (cosines / temperature).softmax(0).sort(descending=True).values.cumsum(0)
        axes.plot(range(1, NEGATIVES + 1), shares.numpy(), label=f"temperature {temperature}")
    axes.set(
        xscale="log",
        ylim=(0, 1.02),
        xlabel="hardest negatives of the row",
        ylabel="share of the gradient",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    return figure
