"""Plain PyTorch, a block of rows at a time, recomputed in backward: what one writes by hand.

It also is the float64 reference for batches whose dense matrices are too large or too slow;
tests/bench shows it equal to reference/mfh.py. It shares no code with mxm_kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from bench.batch import Batch, Selection
from bench.providers.dense import HARD_WEIGHT, logits
from bench.providers.provider import Provider

CPU_BLOCK = 1 << 21  # numbers in a block of logits
GPU_BLOCK = 1 << 26


def _block(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    X: Tensor | None,
    Y: Tensor | None,
    ids: Tensor,
    other_ids: Tensor,
    selections: Tensor,
) -> Tensor:
    """Summed loss of some rows. ``selections`` (rounds, rows)."""
    S = logits(x, y, scale)
    positives = ids[:, None] == other_ids
    n = S.masked_fill(positives, -torch.inf).logsumexp(1)
    margins = n[:, None] - S.gather(1, selections.T)
    # The default threshold, 20, costs a float64 reference half of its digits.
    hard = softplus(margins, threshold=40).mean(1).sum()
    if X is None or Y is None:
        return hard
    T = logits(X, Y, scale.detach())
    soft = S.logsumexp(1).sum() - (T.softmax(1) * S).sum()
    return HARD_WEIGHT * hard + (1 - HARD_WEIGHT) * soft


def _direction(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    X: Tensor | None,
    Y: Tensor | None,
    ids: Tensor,
    other_ids: Tensor,
    selections: Tensor,
) -> Tensor:
    numbers = GPU_BLOCK if x.device.type == "cuda" else CPU_BLOCK
    height = max(1, numbers // len(y))
    total = torch.zeros((), dtype=scale.dtype, device=x.device)
    for start in range(0, len(x), height):
        rows = slice(start, start + height)
        total = total + checkpoint(
            _block,
            x[rows],
            y,
            scale,
            None if X is None else X[rows],
            Y,
            ids[rows],
            other_ids,
            selections[:, rows],
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return total / len(x)


def chunked_mfh(batch: Batch, selection: Selection) -> Tensor:
    """The MFH loss of a batch and its drawn positives."""
    b = batch
    images = _direction(
        b.x, b.y, b.scale, b.teacher_x, b.teacher_y, b.image_ids, b.text_ids, selection[0]
    )
    texts = _direction(
        b.y, b.x, b.scale, b.teacher_y, b.teacher_x, b.text_ids, b.image_ids, selection[1]
    )
    return (images + texts) / 2


PROVIDERS = [Provider("chunked PyTorch", chunked_mfh)]
