"""The soft loss inside one modality from its matrices, where they are small.

Without them it takes four runs of the operator, thirteen products of M M D for four, and three
times the launches; they are made up to a size, as a backend keeps S up to one.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mxm_kernels.algebra.batch import Batch

SMALL = 1 << 23  # numbers of a matrix: 32 MiB


def is_small(batch: Batch) -> bool:
    """Whether the matrices may be made: on one process, and of at most 2,896 rows."""
    return batch.shard is None and batch.tables.images**2 <= SMALL


def soft_rows_of_small(batch: Batch) -> Tensor:
    """(M,) cross-entropy against the teacher's softmax over the other rows.

    q_i = logsumexp_{j != i} S_ij - sum_{j != i} softmax_{j != i}(T_i.) S_ij
    """
    assert batch.teacher is not None
    x, a = batch.x.to(batch.dtype), batch.teacher[0].to(batch.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return cast(Tensor, _SoftRows.apply(x, batch.scales[0], a, batch.teacher_scales[0]))


class _SoftRows(torch.autograd.Function):
    """The derivative by S is the difference of two softmaxes, which forward already has."""

    @staticmethod
    def forward(ctx, x, s, a, t):
        products = x @ x.T
        targets = (a @ a.T).mul_(t).fill_diagonal_(-torch.inf).softmax(1)
        logs = (products * s).fill_diagonal_(-torch.inf).log_softmax(1)
        dS = logs.exp() - targets
        ctx.save_for_backward(x, s, products, dS)
        # The logarithm of a scale that is not positive is not finite.
        shown = torch.minimum(s, t).log() * 0
        return shown - (targets * logs.fill_diagonal_(0)).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, s, products, dS = ctx.saved_tensors
        dS = grad[:, None] * dS
        with torch.autocast(x.device.type, enabled=False):
            dx = (dS + dS.T) @ x * s
        return dx, (dS * products).sum(), None, None
