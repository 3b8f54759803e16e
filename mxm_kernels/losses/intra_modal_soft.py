"""The soft loss inside one modality: cross-entropy against the teacher's softmax over other rows.

    q_i = logsumexp_{j != i} S_ij - sum_{j != i} softmax_{j != i}(T_i.) S_ij

Where the matrices are small they are made: on one process, of at most 2,896 rows. Else it takes
four runs of the operator, thirteen products of M M D for four, and O(M D) memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import threshold

from mxm_kernels.backends.interface import PairRules
from mxm_kernels.core.batch import Batch
from mxm_kernels.core.formulas import logsumexp
from mxm_kernels.core.make_rows import rows_of
from mxm_kernels.losses.averages import average_over_negatives

SMALL = 1 << 23  # numbers of a matrix: 32 MiB


def soft_losses(batch: Batch) -> Tensor:
    """(M,) losses of this process's rows; the batch has one modality as both of its sides.

    Its tables have no row as a positive of itself, nor as a negative.
    """
    small = batch.shard is None and batch.tables.images**2 <= SMALL
    offsets = PairRules(batch.rules.logit_offsets, batch.rules.teacher_offsets)
    whole = replace(batch, rules=offsets, options=batch.options._replace(filter_margin=None))
    return _by_matrix(whole) if small else _by_operator(whole)


def _by_operator(batch: Batch) -> Tensor:
    """The sum has two parts, over the negatives and over the other positives."""
    assert batch.teacher is not None
    a, t, rows = batch.teacher[0], batch.teacher_scales[0], len(batch.x)
    b, c = (None if v is None else v[:rows] for v in batch.rules[:2])
    with torch.no_grad():
        rules = PairRules(batch.rules.teacher_offsets)
        alone = replace(batch, x=a, y=a, scales=(t, t), teacher_scales=(t, t), rules=rules)
        T = rows_of(alone, reads_teacher=False)
        joint = logsumexp(T, None)
        negatives = (T.neg_lse - joint).exp()[:rows]
        positives = (T.positives - T.spread(joint)).exp()
    S, x = rows_of(batch, reads_teacher=False), batch.x.to(batch.dtype)
    z = x if b is None else torch.cat([x, b[:, None]], 1)
    m = average_over_negatives(batch, z, a.to(batch.dtype), t, T.neg_lse[:rows], c)
    of_positives = S.sum(positives * S.positives)[:rows]
    average = batch.scales[0] * (x * m[:, : x.shape[1]]).sum(1)
    if b is not None:
        average = average + b + m[:, -1]
    u = negatives * average + of_positives
    return logsumexp(S, None)[:rows] - u


def _by_matrix(batch: Batch) -> Tensor:
    assert batch.teacher is not None
    x, a = batch.x.to(batch.dtype), batch.teacher[0].to(batch.dtype)
    with torch.autocast(x.device.type, enabled=False):
        t = batch.teacher_scales[0] if batch.options.teacher_logit_scale is not None else None
        offsets = [None if v is None else v[: len(x)] for v in batch.rules[:2]]
        return cast(Tensor, _SoftLosses.apply(x, batch.scales[0], a, t, *offsets))


def _with_diagonal(matrix: Tensor, value: float) -> Tensor:
    """The (M, M) matrix, whose diagonal is filled; fill_diagonal_ takes no symbolic size."""
    matrix.diagonal().fill_(value)
    return matrix


class _SoftLosses(torch.autograd.Function):
    """The derivative by S is the difference of two softmaxes, which forward already has.

    Without a scale t of its own the teacher has s.
    """

    @staticmethod
    def forward(ctx, x, s, a, t, b, c):
        s = threshold(s, 0, torch.nan)
        t = s if t is None else threshold(t, 0, torch.nan)
        products = x @ x.T
        T, S = (a @ a.T).mul_(t), products * s
        for logits, offsets in ((T, c), (S, b)):
            if offsets is not None:
                logits.add_(offsets[:, None]).add_(offsets)
        targets = _with_diagonal(T, -torch.inf).softmax(1)
        logs = _with_diagonal(S, -torch.inf).log_softmax(1)
        dS = logs.exp() - targets
        ctx.save_for_backward(x, s, products, dS)
        logs = _with_diagonal(logs, 0)[..., None]
        # One product of a row and a column for each loss.
        losses = torch.baddbmm(logs[:, :1], targets[:, None], logs, beta=0, alpha=-1)
        return losses.view(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, s, products, dS = ctx.saved_tensors
        dS = grad[:, None] * dS
        with torch.autocast(x.device.type, enabled=False):
            dx = (dS + dS.T) @ x * s
        db = dS.sum(1) + dS.sum(0) if ctx.needs_input_grad[4] else None
        return dx, (dS * products).sum(), None, None, db, None
