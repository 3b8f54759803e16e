"""The average of features under the teacher's softmax over the negatives of each row.

    m_i = sum_{j in Neg(i)} E(T_ij - n_i) z_j          n_i = logsumexp_{j in Neg(i)} T_ij

The operator's u averages over the whole row. Inside one modality the pair of a row with itself has
to stay out. It cannot be subtracted afterwards: it may hold all but 1e-8 of the softmax, and the
difference would have no correct digit. So only the negatives are averaged here. The other positives
are added pair by pair.

No kernel is needed, because the operator's backward computes this average. With rows (a_i, 0) and
columns (a_j, z_j) the operator's matrix is T. For an upstream gradient of 1 / t for n_i it returns

    dx_i = sum_{j in Neg(i)} E(T_ij - n_i) (a_j, z_j)

whose second half is m_i. The gradient of m is that of the columns (a_j, 0) for rows (a_i, dm_i).
Memory is O(M D). The products are in float32 (float64 for float64 features).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mxm_kernels.backends.interface import Gradients, Memory, PairRules, Statistics, Upstream
from mxm_kernels.core.batch import Batch
from mxm_kernels.folds.tables import PairTables
from mxm_kernels.memory import budget_of
from mxm_kernels.ops.library import NO_RULES
from mxm_kernels.ops.statistics import statistics_backward


def average_over_negatives(
    batch: Batch, z: Tensor, a: Tensor, t: Tensor, n: Tensor, offsets: Tensor | None = None
) -> Tensor:
    """(M, D) m of this process's rows; only z gets a gradient.

    Args:
        batch: one modality, as both of its sides.
        z: (M, D) in the dtype of the loss.
        a: (M, D') the teacher's features in that dtype.
        t: () the teacher's scale.
        n: (M,) log-sum-exp of T over the negatives.
        offsets: (M,) those of T, which has them for rows and columns alike.

    """
    tables = batch.tables.pair_tables() if batch.shard is None else batch.shard.row_tables
    memory = Memory(budget_of(z.device))
    given = batch.shard, batch.backend, memory, a, t, n, offsets
    return cast(Tensor, _Average.apply(z, *given, *tables))


class _Average(torch.autograd.Function):
    """Linear in z: m = P z, and dz = P^T dm."""

    @staticmethod
    def forward(ctx, z, shard, backend, memory, a, t, n, offsets, *tables):
        every_a, every_z, every_n, rules = a, z, n, NO_RULES
        if shard is not None:
            gathered = shard.ranks.gather(torch.cat([a, z, n[:, None]], 1), shard.texts)
            every_a, every_z, every_n = gathered.split([a.shape[1], z.shape[1], 1], 1)
            every_n = every_n.squeeze(1)
        if offsets is not None:
            rules = PairRules(torch.cat([offsets, offsets]))
            rules = rules if shard is None else shard.with_every_text(rules, len(a))
        ctx.save_for_backward(a, every_a, t, n, every_n, rules.logit_offsets, *tables)
        ctx.shard, ctx.backend, ctx.memory = shard, backend, memory
        rows, cols = torch.cat([a, torch.zeros_like(z)], 1), torch.cat([every_a, every_z], 1)
        saved = t, n, every_n, PairTables(*tables), rules
        dx = _differentiate(rows, cols, *saved, [True, False, False, False], backend, memory).x
        return dx[:, a.shape[1] :].contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, dm):
        a, every_a, t, n, every_n, offsets, *tables = ctx.saved_tensors
        rest = dm.new_zeros(len(every_a), dm.shape[1])
        rows, cols = torch.cat([a, dm], 1), torch.cat([every_a, rest], 1)
        saved = t, n, every_n, PairTables(*tables), PairRules(offsets)
        needs = [False, True, False, False]
        dy = _differentiate(rows, cols, *saved, needs, ctx.backend, ctx.memory).y
        dz = dy[:, a.shape[1] :].contiguous()
        if ctx.shard is not None:
            dz = ctx.shard.sum_columns(dz, dz.dtype)
        return dz, *[None] * (7 + len(tables))


def _differentiate(
    rows: Tensor,
    cols: Tensor,
    t: Tensor,
    n: Tensor,
    every_n: Tensor,
    tables: PairTables,
    rules: PairRules,
    needs: list[bool],
    backend: str,
    memory: Memory,
) -> Gradients:
    """The operator's backward for an upstream gradient of 1 / t for every row with a negative."""
    nothing, positives = n.new_empty(0), n.new_zeros(len(tables.owners))
    others = [nothing] * (len(Statistics._fields) - 2)
    saved = Statistics(torch.cat([n, every_n]), positives, *others)
    dn = torch.where(n == -torch.inf, 0, 1 / t)
    dn = torch.cat([dn, torch.zeros_like(every_n)])
    upstream = Upstream(dn, positives, nothing, nothing, nothing)
    return statistics_backward(
        rows, cols, None, t, None, tables, saved, upstream, needs, backend, memory, rules
    )
