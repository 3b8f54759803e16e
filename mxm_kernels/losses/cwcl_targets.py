"""Targets linear in a given similarity (CWCL), from products of features.

    w_ij = (1 + <a_i, b_j>) / 2          v_i = sum_j w_ij S_ij / sum_j w_ij

v_i is the plain average of the row plus what the weights w add to it, up to the factor s:

    <x_i, mean y> + x_i^T (sum_j (y_j - mean y) (b_j - mean b)^T) a_i / sum_j (1 + <a_i, b_j>)

The two parts are computed apart for precision. Where a_i is opposite to all b_j the denominator has
few correct digits. The numerator would have few too if it held the average; without the average it
is small there. A row whose weights are all 0 has target 0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from mxm_kernels.backends.row_scales import scaled
from mxm_kernels.backends.target_matrix import over
from mxm_kernels.core.batch import Batch
from mxm_kernels.core.mean import zero
from mxm_kernels.ops.library import passed_on
from mxm_kernels.ops.target_matrix import target_matrix


def row_targets(batch: Batch) -> Tensor:
    """(R,) averages v of the list of rows, in the dtype of the loss.

    A scale for each row is rounded into 16-bit features here as it is where S is formed, or the
    log-sum-exp and the target of a row would be those of two matrices.
    """
    x, y, a, b = _features(batch)
    scaled_x, scaled_y = x, y
    if not batch.one_scale:
        scaled_x = scaled(batch.x, batch.scales[0]).to(batch.dtype)
        scaled_y = scaled(batch.y, batch.scales[1]).to(batch.dtype)
    with torch.autocast(x.device.type, enabled=False):
        rows = _weighted_average(batch, scaled_x, y, a, b, batch.tables.texts)
        cols = _weighted_average(batch, scaled_y, x, b, a, batch.tables.images)
    targets = torch.cat([rows, cols])
    targets = batch.scales[0] * targets if batch.one_scale else targets
    return targets if batch.rules.logit_offsets is None else targets + _of_offsets(batch, a, b)


def _of_offsets(batch: Batch, a: Tensor, b: Tensor) -> Tensor:
    """(R,) averages of the offsets b_i + b_j, which are products of (1, b_i) and (b_j, 1)."""
    assert batch.rules.logit_offsets is not None
    images, texts = batch.halves(batch.rules.logit_offsets)
    left = [torch.stack([torch.ones_like(v), v], 1) for v in (images, texts)]
    right = [v.flip(1) for v in left]
    with torch.autocast(a.device.type, enabled=False):
        rows = _weighted_average(batch, left[0], right[1], a, b, batch.tables.texts)
        cols = _weighted_average(batch, left[1], right[0], b, a, batch.tables.images)
    return torch.cat([rows, cols])


def _features(batch: Batch) -> tuple[Tensor, ...]:
    """x, y, a, b in the dtype of the loss."""
    assert batch.teacher is not None
    return tuple(f.to(batch.dtype) for f in (batch.x, batch.y, *batch.teacher))


def _weighted_average(
    batch: Batch, x: Tensor, y: Tensor, a: Tensor, b: Tensor, columns: int
) -> Tensor:
    """(rows,) v over s."""
    y_mean, b_mean = batch.sum(y.sum(0)) / columns, batch.sum(b.sum(0)) / columns
    # The deviations of b sum to 0, so y_mean gets no gradient from those of y.
    together = batch.sum((y - y_mean.detach()).T @ (b - b_mean))
    total = columns * (1 + a @ b_mean)
    none = total == 0
    more = ((x @ together) * a).sum(1) / total.masked_fill(none, 1)
    return (x @ y_mean + more).masked_fill(none, 0)


def is_linear(batch: Batch) -> bool:
    """Whether the loss is one sum over one matrix S, in which the targets are linear."""
    alone = batch.shard is None and batch.options.reduction == "mean"
    constant = not any(w is not None and w.requires_grad for w in batch.row_weights)
    return alone and batch.one_scale and constant and batch.rules.logit_offsets is None


def with_target(batch: Batch, factors: Tensor) -> tuple[Batch, Tensor]:
    """The batch, and () sum_r v_r ``factors``_r / s over its rows, for :func:`less_target`.

    It needs :func:`is_linear`. The gradients of features and scale through the returned batch
    contain those of the sum. So both parts are added before they are rounded.
    """
    assert batch.teacher is not None
    with torch.autocast(batch.x.device.type, enabled=False):
        tensors = [batch.x, batch.y, batch.scales[0], *batch.teacher, factors]
        made = cast(tuple[Tensor, ...], _WithTarget.apply(*tensors, batch.backend))
        x, y, s, target = made
    return replace(batch, x=x, y=y, scales=(s, s)), target


def less_target(batch: Batch, lse: Tensor, target: Tensor) -> Tensor:
    """() the loss: the sum ``lse`` of the log-sum-exps minus s times the sum ``target``.

    Where it is not finite every gradient is NaN; see ``core.mean.nan_everywhere``.
    """
    s, nothing = batch.scales[0].detach(), zero(batch.tables, batch.dtype)
    return cast(Tensor, _LessTarget.apply(lse, target, s, nothing))


class _LessTarget(torch.autograd.Function):
    """One launch each: the difference, and 0 times it in the gradient of both."""

    @staticmethod
    def forward(ctx, lse, target, s, nothing):
        loss = torch.addcmul(lse, s, target, value=-1)
        ctx.save_for_backward(loss, nothing)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        loss, nothing = ctx.saved_tensors
        grad = torch.addcmul(grad, nothing, loss)
        return grad, grad, None, None


# Numbers of a matrix that may be made where that is cheaper: 16 MiB.
_SMALL = 1 << 22
# Multiply-adds that a GPU does in float32, 20e12 a second, while 25 launches of 5 us are made.
_LAUNCHES = 2_500_000_000


def _is_cheaper_by_matrix(x: Tensor, y: Tensor, a: Tensor) -> bool:
    """Whether K is small, and takes fewer operations than its factors, or spares launches."""
    pairs, rows, D, teacher_D = len(x) * len(y), len(x) + len(y), x.shape[1], a.shape[1]
    by_rank = 4 * rows * D * teacher_D + (_LAUNCHES if x.is_cuda else 0)
    return pairs <= _SMALL and pairs * (teacher_D + 2 * D) <= by_rank


class _WithTarget(torch.autograd.Function):
    """<x, K y>, with K of ``backends/target_matrix.py``, linear in x and in y.

    Its upstream gradient is that of the loss, which contains -s times this number.
    """

    @staticmethod
    def forward(ctx, x, y, s, a, b, factors, backend):
        x_wide, y_wide, a_wide, b_wide = (f.to(s.dtype) for f in (x, y, a, b))
        if _is_cheaper_by_matrix(x, y, a):
            Ky, Kx = _products_by_matrix(x_wide, y_wide, a_wide, b_wide, factors, backend)
        else:
            Ky, Kx = _products_by_rank(x_wide, y_wide, a_wide, b_wide, factors)
        product = (x_wide * Ky).sum()
        ctx.save_for_backward(s, Ky, Kx, product)
        return *passed_on(ctx, x, y, s), product

    @staticmethod
    @once_differentiable
    def backward(ctx, dx, dy, ds, grad):
        s, Ky, Kx, product = ctx.saved_tensors
        scaled_grad = grad * s
        dx, dy = (
            torch.addcmul(d.to(s.dtype), of_target, scaled_grad, value=-1).to(d.dtype)
            if need
            else None
            for d, of_target, need in zip((dx, dy), (Ky, Kx), ctx.needs_input_grad[:2], strict=True)
        )
        ds = torch.addcmul(ds, grad, product, value=-1) if ctx.needs_input_grad[2] else None
        return dx, dy, ds, *[None] * 4


def _products_by_matrix(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, factors: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """K y and K^T x from K: M N (D' + 2 D) products."""
    K = target_matrix(a, b, factors, backend)
    return K @ y, K.T @ x


def _products_by_rank(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor]:
    """K y and K^T x from factors of rank 1 + D' for each side: 4 (M + N) D D' products."""
    a_mean, b_mean = a.mean(0), b.mean(0)
    rows = _weights(a, b_mean, factors[: len(x)])  # f_i w_ij / mean_j w_ij
    cols = _weights(b, a_mean, factors[len(x) :])  # f'_j w_ij / mean_i w_ij
    of_a, of_b = _deviations(a, a_mean), _deviations(b, b_mean)
    M, N = len(x), len(y)  # a sum of w is so many times its mean
    Ky = torch.addmm(rows @ (of_b.T @ y), of_a, cols.T @ y, beta=1 / N, alpha=1 / M)
    Kx = torch.addmm(of_b @ (rows.T @ x), cols, of_a.T @ x, beta=1 / N, alpha=1 / M)
    return Ky, Kx


def _weights(a: Tensor, b_mean: Tensor, factors: Tensor) -> Tensor:
    """(rows, 1 + D') 1 and a_i / (1 + <a_i, mean b>), times factors, 0 where that has no weight."""
    total = a @ b_mean + 1
    return torch.cat([total[:, None], a], 1) * over(factors, total)[:, None]


def _deviations(b: Tensor, b_mean: Tensor) -> Tensor:
    """(columns, 1 + D') 1 and b_j - mean b."""
    return pad(b - b_mean, (1, 0), value=1.0)
