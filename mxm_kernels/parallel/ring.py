"""The operators over ranks where the features of all texts do not fit on one: a ring.

The texts of a rank travel from rank to rank, and every rank runs its images against those that
are with it while the next are on their way. The sums of its rows are merged block by block;
those of the columns, and the pairs, go the way of ``over_ranks``. Backward sends the texts
around again, and behind them the gradient of each, to which every rank adds its part in the
dtype of the statistics. A rank holds the texts of two ranks instead of all; in a step it sends

    features        (W - 1) N_r (D + D') e forward, the same again backward (without D' N_r e
                    for a teacher that there is not)
    gradients       W N_r D 4 bytes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mxm_kernels.backends.problem import SigmoidStatistics, Upstream
from mxm_kernels.operators.sigmoid import sigmoid_statistics, sigmoid_statistics_backward
from mxm_kernels.operators.statistics import statistics, statistics_backward
from mxm_kernels.parallel.merging import column_parts, merge, row_parts, shares_of
from mxm_kernels.parallel.shards import Shard


def ring_statistics(*arguments: Any) -> tuple[Tensor, ...]:
    """As the statistics of ``over_ranks``, from the same arguments."""
    return _RingStatistics.apply(*arguments)


def ring_sigmoid(*arguments: Any) -> tuple[Tensor, ...]:
    """As the sigmoid statistics of ``over_ranks``, from the same arguments."""
    return _RingSigmoid.apply(*arguments)


class _RingStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shard, backend, diagnostics, x, y, scale, teacher_x, teacher_y, t):
        taught = teacher_x is not None
        mine = (y, teacher_y) if taught else (y,)
        positives = x.new_empty(len(shard.order), dtype=scale.dtype)
        rows: list[Tensor] = []
        cols: dict[int, Tensor] = {}
        for owner, block in shard.ranks.ring(mine, shard.texts):
            tables, slots = shard.block(owner)
            teacher = (teacher_x, block[1]) if taught else None
            s = statistics(x, block[0], teacher, scale, t, tables, backend, diagnostics)
            positives[slots] = s.positives
            rows.append(row_parts(s, taught, diagnostics))
            cols[owner] = column_parts(s, taught, diagnostics)
        every = torch.cat([cols[rank] for rank in range(shard.ranks.world)])
        parts = shard.to_columns(every)
        own_rows, own_cols = (merge(p, taught, diagnostics) for p in (torch.stack(rows), parts))
        S_cols = shard.pairs_to_columns(positives)
        features = x, y, scale, teacher_x, teacher_y, t
        ctx.save_for_backward(*features, positives, every, parts, *own_rows[:3], *own_cols[:3])
        ctx.shard, ctx.backend = shard, backend
        n, u, *unread = own_rows
        outputs = (n, positives, u, *unread, own_cols.n, S_cols, *own_cols[1:])
        ctx.mark_non_differentiable(*(outputs[k] for k in (3, 4, 5, 9, 10, 11)))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, dn, dS, du, _t, _m, _h, dn_cols, dS_cols, du_cols, *_):
        shard = ctx.shard
        x, y, scale, teacher_x, teacher_y, t, positives, every, parts, *merged = ctx.saved_tensors
        n, u, t_rows, n_cols, _, t_cols = merged
        taught = teacher_x is not None
        down = [dn_cols * shares_of(parts[..., 0], n_cols)]
        if taught:
            down.append(du_cols * shares_of(parts[..., 2], t_cols))
        down = shard.from_columns(torch.stack(down, -1)).split(shard.texts)
        every = every.split(shard.texts)  # (N_r, k) of each rank
        dS = dS + shard.pairs_from_columns(dS_cols)
        needs = list(ctx.needs_input_grad[3:6])
        nothing = du.new_empty(0)

        def block_gradient(owner: int, block: tuple[Tensor, ...]):
            tables, slots = shard.block(owner)
            d, s = down[owner], every[owner].T.contiguous()
            saved = n, s[0], positives[slots], u, s[1] if taught else nothing, t_rows
            upstream = Upstream(dn, d[:, 0], dS[slots], du, d[:, 1] if taught else nothing)
            return statistics_backward(
                x,
                block[0],
                (teacher_x, block[1]) if taught else None,
                scale,
                t,
                tables,
                (*saved, s[2] if taught else nothing),
                upstream,
                needs,
                ctx.backend,
            )

        mine = (y, teacher_y) if taught else (y,)
        grads = _around(shard, mine, block_gradient, (x, y, scale), needs)
        return (None, None, None, *grads, None, None, None)


class _RingSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shard, backend, x, y, scale, bias):
        positives = x.new_empty(len(shard.order), dtype=scale.dtype)
        r_rows = x.new_zeros(len(x), dtype=scale.dtype)
        cols: dict[int, Tensor] = {}
        for owner, (block,) in shard.ranks.ring((y,), shard.texts):
            tables, slots = shard.block(owner)
            s = sigmoid_statistics(x, block, scale, bias, tables, backend)
            positives[slots] = s.positives
            r_rows += s.r_rows
            cols[owner] = s.r_cols
        every = torch.cat([cols[rank] for rank in range(shard.ranks.world)])
        r_cols = shard.sum_columns(every, every.dtype)
        ctx.save_for_backward(x, y, scale, bias, positives)
        ctx.shard, ctx.backend = shard, backend
        return r_rows, positives, r_cols, shard.pairs_to_columns(positives)

    @staticmethod
    @once_differentiable
    def backward(ctx, dr, dS, dr_cols, dS_cols):
        shard = ctx.shard
        x, y, scale, bias, positives = ctx.saved_tensors
        down = shard.from_columns(dr_cols.expand(shard.ranks.world, -1)).split(shard.texts)
        dS = dS + shard.pairs_from_columns(dS_cols)
        needs = list(ctx.needs_input_grad[2:6])

        def block_gradient(owner: int, block: tuple[Tensor, ...]):
            tables, slots = shard.block(owner)
            upstream = SigmoidStatistics(dr, down[owner], dS[slots])
            return sigmoid_statistics_backward(
                x, block[0], scale, bias, tables, positives[slots], upstream, needs, ctx.backend
            )

        grads = _around(shard, (y,), block_gradient, (x, y, scale, bias), needs)
        return (None, None, *grads)


def _around(
    shard: Shard,
    mine: tuple[Tensor, ...],
    block_gradient: Callable[[int, tuple[Tensor, ...]], tuple[Tensor, ...]],
    like: tuple[Tensor, ...],
    needs: list[bool],
) -> list[Tensor | None]:
    """Send the blocks around, and the sum of each one's dy behind it, home to its rank.

    ``block_gradient`` gives dx, dy and those of the scalars for one block; ``like`` are x, y
    and the scalars. Sums are in the dtype of the scalars.
    """
    ranks, dtype = shard.ranks, like[2].dtype
    totals = [torch.zeros_like(t, dtype=dtype) for t in like]
    width = like[1].shape[1:]

    def room(owner: int) -> Tensor:
        return like[1].new_empty((shard.texts[owner], *width), dtype=dtype)

    pending: list = []
    coming = room(ranks.rank)
    for step, (owner, block) in enumerate(ranks.ring(mine, shard.texts)):
        dx, dy, *scalars = block_gradient(owner, block)
        for total, part in zip([totals[0], *totals[2:]], [dx, *scalars], strict=True):
            if part.numel():
                total += part
        if not needs[1]:
            continue
        leaving = dy.to(dtype)
        if step:  # what the ranks before have summed
            for work in pending:
                work.wait()
            leaving = leaving + coming
        # The next to come is the sum of the block before this one, or in the end the own.
        coming = room((owner - 1) % ranks.world)
        pending = ranks.pass_on((leaving,), (coming,))
    if needs[1]:
        for work in pending:
            work.wait()
        totals[1] = coming
    return [
        total.to(t.dtype) if need else None
        for total, t, need in zip(totals, like, needs, strict=True)
    ]
