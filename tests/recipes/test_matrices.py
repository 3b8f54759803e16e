"""No recipe of these pages makes a matrix of all rows and all columns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from docs.recipes import more_modalities, prototypes, soft_targets
from mxm_kernels import backends, memory_budget
from tests.support.memory import WORKSPACE, peak_bytes

ROWS = 6_000
MATRIX = 4 * ROWS**2
OPTIONS = {"logit_scale": 9.0, "backend": "native"}


def mixup(x: Tensor, y: Tensor) -> Tensor:
    targets = soft_targets.mixup_targets(torch.randperm(ROWS), torch.rand(ROWS))
    return soft_targets.m3co_loss(x, y, x, y, targets, targets, **OPTIONS)


def low_rank(x: Tensor, y: Tensor) -> Tensor:
    targets = soft_targets.LowRank(torch.rand(ROWS, 4), torch.rand(ROWS, 4))
    return soft_targets.soft_target_loss(x, y, targets, **OPTIONS)


def classes(x: Tensor, y: Tensor) -> Tensor:
    ids = torch.arange(ROWS) % 10, torch.arange(ROWS) % 7
    return soft_targets.class_table_loss(x, y, ids, torch.rand(10, 7), **OPTIONS)


def mixed_pairs(x: Tensor, y: Tensor) -> Tensor:
    labels, owners = torch.arange(ROWS) // 3, torch.arange(ROWS)
    targets = soft_targets.mixed_pair_targets(labels, labels, owners, owners % 2 == 0)
    return soft_targets.mixed_pairs_loss(x, y, y, owners, targets, **OPTIONS)


def symile(x: Tensor, y: Tensor) -> Tensor:
    return more_modalities.symile_loss([x, y, x], **OPTIONS)


def dino(x: Tensor, y: Tensor) -> Tensor:
    """The columns are the prototypes."""
    centre = prototypes.Centre(ROWS)
    centre.update([x.detach()], y.detach())
    return prototypes.dino_loss([x, x], [x], y, y, centre.value, backend="native")


def swav(x: Tensor, y: Tensor) -> Tensor:
    offsets = prototypes.sinkhorn(x.detach(), y.detach(), iterations=2, backend="native")
    return prototypes.swav_loss([x, x], y, [offsets], backend="native")


@pytest.mark.parametrize(
    "loss", [mixup, low_rank, classes, mixed_pairs, symile, dino, swav], ids=lambda f: f.__name__
)
def test_peak_memory(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    reason = backends.load("native").unavailable(torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.skip(reason)
    x, y = (normalize(torch.randn(ROWS, 8)).requires_grad_() for _ in range(2))
    with memory_budget(0):
        peak = peak_bytes(lambda: loss(x, y).backward(), torch.device("cpu"))
    assert peak < WORKSPACE["native"] + MATRIX / 4
