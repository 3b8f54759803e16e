"""How far the drawn loss is from its expectation, and its cost in the dense computation."""

import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch.nn.functional import normalize

from docs.figures import DRAWN, IMAGE
from mxm_kernels import Folds, fused_mfh_loss

ROUNDS = (1, 2, 5, 10, 20, 50, 100)
DRAWS = 60


def draw() -> Figure:
    """The loss of one batch over many draws, against the number of rounds."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(12, 32, generator=generator)
    images = normalize(_observe(centers, 6, generator))
    texts = normalize(_observe(centers, 5, generator))
    folds = Folds.uniform(6, 5)

    def loss(rounds: int | None) -> float:
        value = fused_mfh_loss(
            images, texts, folds, logit_scale=1 / 0.07, rounds=rounds, generator=generator
        )
        return float(value)

    figure, axes = pyplot.subplots(figsize=(5.2, 2.9), layout="constrained")
    for rounds in ROUNDS:
        values = [loss(rounds) for _ in range(DRAWS)]
        label = f"{DRAWS} draws" if rounds == ROUNDS[0] else None
        axes.scatter([rounds] * DRAWS, values, s=6, alpha=0.4, color=IMAGE, label=label)
    expectation = "exact expectation, rounds=None"
    axes.axhline(loss(None), color=DRAWN, label=expectation)
    axes.set(xscale="log", xlabel="rounds R", ylabel="hard loss of one batch")
    axes.legend(frameon=False)
    return figure


def _observe(centers: torch.Tensor, times: int, generator: torch.Generator) -> torch.Tensor:
    """Noisy observations of every instance, (instances * times, D)."""
    repeated = centers.repeat_interleave(times, 0)
    return repeated + 0.7 * torch.randn(repeated.shape, generator=generator)
