"""Targets linear in a given similarity (CWCL), from products of features.

    w_ij = (1 + <a_i, b_j>) / 2          v_i = sum_j w_ij S_ij / sum_j w_ij

v_i is the plain average of the row and what w adds to it:

    <x_i, mean y> + x_i^T (sum_j (y_j - mean y) (b_j - mean b)^T) a_i / sum_j (1 + <a_i, b_j>)

Where a_i is opposite to the columns, the denominator keeps few digits, and so would the numerator
be if it held the average too; what is left of it there is small. A row whose weights are all 0 has
target 0.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from mxm_kernels.algebra.batch import Batch
from mxm_kernels.algebra.run import scaled


def targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """Averages v of the rows and of the columns, in the dtype of the loss.

    A scale for each row is rounded into 16-bit features here as it is where S is formed, or the
    log-sum-exp and the target of a row would be those of two matrices.
    """
    x, y, a, b = _features(batch)
    own_x, own_y = x, y
    if not batch.one_scale:
        own_x = scaled(batch.x, batch.scales[0]).to(batch.dtype)
        own_y = scaled(batch.y, batch.scales[1]).to(batch.dtype)
    with torch.autocast(x.device.type, enabled=False):
        rows = _weighted_average(batch, own_x, y, a, b, batch.tables.texts)
        cols = _weighted_average(batch, own_y, x, b, a, batch.tables.images)
    return (batch.scales[0] * rows, batch.scales[1] * cols) if batch.one_scale else (rows, cols)


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


def without_mean_target(batch: Batch, loss: Tensor) -> Tensor:
    """``loss`` minus the mean of v over rows and columns, of a batch with one scale on one process.

    A step of CWCL is 33 launches for a small batch and 48 for others, as
    bench/studies/loss_launches.py counts.
    """
    x, y, a, b = _features(batch)
    share = batch.options.image_to_text_weight
    with torch.autocast(x.device.type, enabled=False):
        made = _WithoutMeanTarget.apply(loss, x, y, batch.scales[0], a, b, share)
    return cast(Tensor, made)


# Numbers of a matrix that may be made where that is cheaper: 16 MiB.
_SMALL = 1 << 22
# Multiply-adds that a GPU does in float32, 20e12 a second, while 15 launches of 5 us are made.
_LAUNCHES = 1_500_000_000


def _is_cheaper_by_matrix(x: Tensor, y: Tensor, a: Tensor) -> bool:
    """Whether K is small, and takes fewer operations than its factors, or spares launches."""
    pairs, rows, D, teacher_D = len(x) * len(y), len(x) + len(y), x.shape[1], a.shape[1]
    by_rank = 4 * rows * D * teacher_D + (_LAUNCHES if x.is_cuda else 0)
    return pairs <= _SMALL and pairs * (teacher_D + 2 * D) <= by_rank


class _WithoutMeanTarget(torch.autograd.Function):
    """The mean of v is s <x, K y>, with K_ij = (1 + <a_i, b_j>) (r_i + c_j), linear in x and y."""

    @staticmethod
    def forward(ctx, loss, x, y, s, a, b, share):
        dense = _is_cheaper_by_matrix(x, y, a)
        products = _products_by_matrix if dense else _products_by_rank
        Ky, Kx = products(x, y, a, b, -share / len(x), (share - 1) / len(y))
        ds = (x * Ky).sum()
        ctx.save_for_backward(s, Ky, Kx, ds)
        return torch.addcmul(loss, s, ds)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        s, Ky, Kx, ds = ctx.saved_tensors
        scaled_grad = grad * s
        return grad, scaled_grad * Ky, scaled_grad * Kx, grad * ds, None, None, None


def _products_by_matrix(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, of_rows: float, of_cols: float
) -> tuple[Tensor, Tensor]:
    """K y and K^T x from K: M N (D' + 2 D) products."""
    w = (a @ b.T).add_(1)
    r, c = (_inverse(w.sum(k, keepdim=True)) for k in (1, 0))
    K = torch.add(r * of_rows, c, alpha=of_cols).mul_(w)
    return K @ y, K.T @ x


def _products_by_rank(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, of_rows: float, of_cols: float
) -> tuple[Tensor, Tensor]:
    """K y and K^T x from factors of rank 1 + D' for each side: 4 (M + N) D D' products."""
    a_mean, b_mean = a.mean(0), b.mean(0)
    rows, cols = _weights(a, b_mean), _deviations(b, b_mean)  # r_i (1 + <a_i, b_j>)
    rows_, cols_ = _weights(b, a_mean), _deviations(a, a_mean)  # c_j (1 + <a_i, b_j>)
    beta, alpha = of_rows / len(y), of_cols / len(x)
    Ky = torch.addmm(rows @ (cols.T @ y), cols_, rows_.T @ y, beta=beta, alpha=alpha)
    Kx = torch.addmm(cols @ (rows.T @ x), rows_, cols_.T @ x, beta=beta, alpha=alpha)
    return Ky, Kx


def _inverse(total: Tensor) -> Tensor:
    """1 / total, 0 where that is infinite."""
    return total.reciprocal().nan_to_num(nan=torch.nan, posinf=0.0, neginf=0.0)


def _weights(a: Tensor, b_mean: Tensor) -> Tensor:
    """(rows, 1 + D') 1 and a_i / (1 + <a_i, mean b>), 0 where that has no weight."""
    total = (a @ b_mean + 1)[:, None]
    return torch.cat([total, a], 1) * _inverse(total)


def _deviations(b: Tensor, b_mean: Tensor) -> Tensor:
    """(columns, 1 + D') 1 and b_j - mean b."""
    return pad(b - b_mean, (1, 0), value=1.0)
