"""The average of features under the teacher's softmax over the negatives of each row.

    m_i = sum_{j in Neg(i)} E(T_ij - n_i) z_j          n_i = logsumexp_{j in Neg(i)} T_ij

The operator's u averages over the whole row. Inside one modality a row's pair with itself has to
stay out, and it cannot be subtracted afterwards: it may hold all but 1e-8 of the softmax, and the
difference would have no digits left. So the negatives alone are averaged here, and the positives
that count are added pair by pair.

There is no kernel for it, because the operator's backward is one. With rows (a_i, 0) and columns
(a_j, z_j) the operator's matrix is T, and for an upstream gradient of 1 / t for n_i it returns

    dx_i = sum_{j in Neg(i)} E(T_ij - n_i) (a_j, z_j)

whose second half is m_i. The gradient of m is that of the columns (a_j, 0) for rows (a_i, dm_i).
Memory is O(M D); the products are in float32 (float64 for float64 features).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mxm_kernels.algebra.batch import Batch
from mxm_kernels.backends.problem import Gradients, Upstream
from mxm_kernels.fold_tables import RowTables
from mxm_kernels.operators.statistics import statistics_backward, vectors


def average_over_negatives(
    batch: Batch, z: Tensor, a: Tensor, t: Tensor, n: Tensor, positives: Tensor
) -> Tensor:
    """(M, D) m of this process's rows; only z gets a gradient.

    Args:
        batch: one modality, as both of its sides.
        z: (M, D) in the dtype of the loss.
        a: (M, D') the teacher's features in that dtype.
        t: () the teacher's scale.
        n: (M,) log-sum-exp of T over the negatives.
        positives: (P,) T of the positive pairs, in slot order.

    """
    tables = batch.tables if batch.shard is None else batch.shard.row_tables
    arguments = batch.shard, batch.backend, a, t, n, positives, *vectors(tables)
    return cast(Tensor, _Average.apply(z, *arguments))


class _Average(torch.autograd.Function):
    """Linear in z: m = P z, and dz = P^T dm."""

    @staticmethod
    def forward(ctx, z, shard, backend, a, t, n, positives, *tables):
        every_a, every_z, every_n = a, z, n
        if shard is not None:
            gathered = shard.ranks.gather(torch.cat([a, z, n[:, None]], 1), shard.texts)
            every_a, every_z, every_n = gathered.split([a.shape[1], z.shape[1], 1], 1)
            every_n = every_n.squeeze(1).contiguous()
        statistics = t, n, every_n, positives, *tables
        ctx.save_for_backward(a, every_a, *statistics)
        ctx.shard, ctx.backend = shard, backend
        rows, cols = torch.cat([a, torch.zeros_like(z)], 1), torch.cat([every_a, every_z], 1)
        dx = _differentiate(rows, cols, statistics, [True, False, False], backend).x
        return dx[:, a.shape[1] :].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, dm):
        a, every_a, *statistics = ctx.saved_tensors
        rest = dm.new_zeros(len(every_a), dm.shape[1])
        rows, cols = torch.cat([a, dm], 1), torch.cat([every_a, rest], 1)
        dy = _differentiate(rows, cols, statistics, [False, True, False], ctx.backend).y
        dz = dy[:, a.shape[1] :].contiguous()
        if ctx.shard is not None:
            dz = ctx.shard.sum_columns(dz, dz.dtype)
        return dz, *[None] * 11


def _differentiate(
    rows: Tensor, cols: Tensor, statistics: Sequence[Tensor], needs: list[bool], backend: str
) -> Gradients:
    """The operator's backward for an upstream gradient of 1 / t for every row with a negative."""
    t, n, every_n, positives, *tables = statistics
    nothing = n.new_empty(0)
    saved = n, every_n, positives, nothing, nothing, nothing, nothing
    dn = torch.where(n == -torch.inf, 0, 1 / t)
    zeros = torch.zeros_like(every_n), torch.zeros_like(positives)
    upstream = Upstream(dn, *zeros, nothing, nothing)
    pairs = RowTables(*tables)
    return statistics_backward(rows, cols, None, t, None, pairs, saved, upstream, needs, backend)
