"""The operators over ranks where the features of all texts do not fit on one: a ring.

The texts of a rank travel from rank to rank, and every rank runs its images against those that
are with it while the next are on their way. The sums of its rows are merged block by block;
those of the columns, and the pairs, go the way of ``all_gather``. Backward sends the texts
around again, and behind them the gradient of each, to which every rank adds its part in the
dtype of the statistics. A rank holds the texts of two ranks instead of all, and keeps no S and T;
in a step it sends

    features        (W - 1) N_r (D + D') e forward, the same again backward (without D' N_r e
                    for a teacher that there is not)
    gradients       W N_r D 4 bytes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mxm_kernels.backends.interface import PairRules, SigmoidStatistics, Statistics, Upstream
from mxm_kernels.distributed.merging import (
    Merged,
    joined,
    merge,
    packed,
    shared_out,
    shares_of,
    unpacked,
    whole_of,
    with_columns,
)
from mxm_kernels.distributed.ranks import bounds
from mxm_kernels.distributed.shards import Shard, at_first_places
from mxm_kernels.ops.sigmoid_statistics import sigmoid_statistics, sigmoid_statistics_backward
from mxm_kernels.ops.statistics import statistics, statistics_backward

_RULES = len(PairRules._fields)


def ring_statistics(*arguments: Any) -> tuple[Tensor, ...]:
    """The statistics that ``all_gather`` computes, from the same arguments, around a ring."""
    return _RingStatistics.apply(*arguments)


def ring_sigmoid(*arguments: Any) -> tuple[Tensor, ...]:
    """The sigmoid statistics that ``all_gather`` computes, from the same arguments, by a ring."""
    return _RingSigmoid.apply(*arguments)


class _RingStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shard, backend, memory, names, x, y, scale, teacher_x, teacher_y, t, *rules):
        memory = memory._replace(keep=False)  # what every block kept would be all of S and T
        taught, images = teacher_x is not None, len(x)
        mine = (y, teacher_y) if taught else (y,)
        asked = "hardest" in names, "neg_sum" in names
        slots = x.new_empty(len(shard.sent_slots), dtype=scale.dtype)
        rows: dict[int, Tensor] = {}
        cols: dict[int, Tensor] = {}
        means: dict[int, Tensor] = {}  # (M + N_r,) neg_mean of each block, where the backend has it
        rules = shard.with_every_text(PairRules(*rules), images)
        for owner, block in shard.ranks.ring(mine, shard.texts):
            tables, places = shard.block(owner)
            teacher = (teacher_x, block[1]) if taught else None
            given = x, block[0], teacher, scale, t, tables, backend, *asked, memory
            s = statistics(*given, shard.rules_of_block(rules, owner, images))
            slots[places] = s.positives[: len(places)]
            rows[owner] = packed(s, names, slice(images))
            cols[owner] = packed(s, names, slice(images, None))
            means[owner] = s.neg_mean
        world = range(shard.ranks.world)
        blocks = torch.stack([rows[rank] for rank in world])  # (W, M, k)
        every = torch.cat([cols[rank] for rank in world])
        parts = shard.to_columns(every)
        of_rows, of_cols = (merge(p, names) for p in (blocks, parts))
        outputs = joined(of_rows, of_cols, slots, shard.pairs_to_columns(slots))
        features = x, y, scale, teacher_x, teacher_y, t
        merged = *of_rows, *of_cols
        every_mean = [means[rank] for rank in world]
        saved = *features, *rules, slots, blocks, every, parts, *merged, *every_mean
        ctx.save_for_backward(*saved)
        ctx.shard, ctx.backend, ctx.memory, ctx.names = shard, backend, memory, names
        ctx.mark_non_differentiable(*outputs[len(Upstream._fields) :])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, dn, dS, du, dm, de, *_):
        shard, names = ctx.shard, ctx.names
        x, y, scale, teacher_x, teacher_y, t, *rest = ctx.saved_tensors
        rules, (slots, *parts) = PairRules(*rest[:_RULES]), rest[_RULES:]
        blocks, every, parts, *merged = parts
        half = len(Merged._fields)
        of_rows, of_cols = Merged(*merged[:half]), Merged(*merged[half : 2 * half])
        means = merged[2 * half :]
        taught, images = teacher_x is not None, len(x)
        every = every.split(shard.texts)  # (N_r, k) of each rank
        d = Upstream(dn, shard.slot_gradients(dS), du, dm, de)
        columns = shared_out(d, slice(images, None), parts, whole_of(of_cols), names)
        down = shard.from_columns(columns).split(shard.texts)
        needs = [*ctx.needs_input_grad[4:7], ctx.needs_input_grad[10]]
        doffsets = _OffsetGradient(shard, images, dn)

        def block_gradient(owner: int, block: tuple[Tensor, ...]):
            tables, places = shard.block(owner)
            of_block, s = unpacked(blocks[owner], names), unpacked(every[owner], names)
            u = du
            if taught:  # the block's part of the rows' averages, as those of s are of the columns'
                u = of_block.teacher_mean * shares_of(of_block.teacher_lse, of_rows.teacher_lse)
            mean = means[owner]  # by the block's n, which for the rows is a part of n
            if len(mean):
                mean = mean.clone()
                mean[:images] *= shares_of(of_block.neg_lse, of_rows.neg_lse)
            saved = Statistics(
                neg_lse=torch.cat([of_rows.neg_lse, s.neg_lse]),
                positives=at_first_places(slots[places]),
                teacher_mean=torch.cat([u, s.teacher_mean]),
                neg_sum=torch.cat([of_block.neg_sum, s.neg_sum]),
                excluded_lse=torch.cat([of_rows.excluded_lse, s.excluded_lse]),
                teacher_lse=torch.cat([of_rows.teacher_lse, s.teacher_lse]),
                hardest=du.new_empty(0),
                entropy=du.new_empty(0),
                num_negatives=du.new_empty(0),
                neg_mean=mean,
                kept=du.new_empty(0),
                units=du.new_empty(0),
            )
            upstream = with_columns(d, images, down[owner], names)
            upstream = upstream._replace(positives=at_first_places(d.positives[places]))
            *made, of_offsets = statistics_backward(
                x,
                block[0],
                (teacher_x, block[1]) if taught else None,
                scale,
                t,
                tables,
                saved,
                upstream,
                needs,
                ctx.backend,
                ctx.memory,
                shard.rules_of_block(rules, owner, images),
            )
            doffsets.add(owner, of_offsets)
            return made

        mine = (y, teacher_y) if taught else (y,)
        grads = _around(shard, mine, block_gradient, (x, y, scale), needs)
        own = doffsets.of_own_rows() if needs[3] else None
        return (*[None] * 4, *grads, *[None] * 3, own, *[None] * (_RULES - 1))


class _OffsetGradient:
    """The gradients by the offsets of this rank's images and of every text, block by block."""

    def __init__(self, shard: Shard, images: int, like: Tensor) -> None:
        self.shard, self.images = shard, images
        self.total = like.new_zeros(images + sum(shard.texts))

    def add(self, owner: int, doffsets: Tensor) -> None:
        """Add those of a block, (M + N_r,); nothing where they are not wanted."""
        if doffsets.numel():
            self.total[: self.images] += doffsets[: self.images]
            place = bounds(self.shard.texts, owner)
            self.total[self.images :][place] = doffsets[self.images :]

    def of_own_rows(self) -> Tensor:
        """(M_r + N_r,) summed over the ranks."""
        return self.shard.of_own_texts(self.total, self.images)


class _RingSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shard, backend, memory, x, y, scale, bias, *rules):
        images = len(x)
        rules = shard.with_every_text(PairRules(*rules), images)
        slots = x.new_empty(len(shard.sent_slots), dtype=scale.dtype)
        r_rows = x.new_zeros(images, dtype=scale.dtype)
        cols: dict[int, Tensor] = {}
        for owner, (block,) in shard.ranks.ring((y,), shard.texts):
            tables, places = shard.block(owner)
            of_block = shard.rules_of_block(rules, owner, images)
            s = sigmoid_statistics(x, block, scale, bias, tables, backend, memory, of_block)
            slots[places] = s.positives[: len(places)]
            r_rows += s.softplus_sum[:images]
            cols[owner] = s.softplus_sum[images:]
        every = torch.cat([cols[rank] for rank in range(shard.ranks.world)])
        r_cols = shard.sum_columns(every, every.dtype)
        ctx.save_for_backward(x, y, scale, bias, slots, *rules)
        ctx.shard, ctx.backend, ctx.memory = shard, backend, memory
        return torch.cat([r_rows, r_cols]), torch.cat([slots, shard.pairs_to_columns(slots)])

    @staticmethod
    @once_differentiable
    def backward(ctx, dr, dS):
        shard = ctx.shard
        x, y, scale, bias, slots, *rules = ctx.saved_tensors
        images, world = len(x), shard.ranks.world
        down = shard.from_columns(dr[images:].expand(world, -1)).split(shard.texts)
        dS = shard.slot_gradients(dS)
        needs = list(ctx.needs_input_grad[3:8])
        doffsets = _OffsetGradient(shard, images, dr)

        def block_gradient(owner: int, block: tuple[Tensor, ...]):
            tables, places = shard.block(owner)
            upstream = SigmoidStatistics(
                torch.cat([dr[:images], down[owner]]), at_first_places(dS[places])
            )
            *made, of_offsets = sigmoid_statistics_backward(
                x,
                block[0],
                scale,
                bias,
                tables,
                at_first_places(slots[places]),
                upstream,
                needs,
                ctx.backend,
                ctx.memory,
                shard.rules_of_block(PairRules(*rules), owner, images),
            )
            doffsets.add(owner, of_offsets)
            return made

        grads = _around(shard, (y,), block_gradient, (x, y, scale, bias), needs)
        own = doffsets.of_own_rows() if needs[4] else None
        return (None, None, None, *grads, own, *[None] * (_RULES - 1))


def _around(
    shard: Shard,
    mine: tuple[Tensor, ...],
    block_gradient: Callable[[int, tuple[Tensor, ...]], Sequence[Tensor]],
    like: tuple[Tensor, ...],
    needs: list[bool],
) -> list[Tensor | None]:
    """Send the blocks around, and the sum of each one's dy behind it, home to its rank.

    ``block_gradient`` gives dx, dy and those of the scalars for one block; ``like`` are x, y
    and the scalars. ``needs`` begins with which of their gradients are wanted. Sums are in the
    dtype of the scalars.
    """
    ranks, dtype = shard.ranks, like[2].dtype
    totals = [torch.zeros_like(t, dtype=dtype) for t in like]
    width = like[1].shape[1:]

    def allocate(owner: int) -> Tensor:
        return like[1].new_empty((shard.texts[owner], *width), dtype=dtype)

    pending: list = []
    coming = allocate(ranks.rank)
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
        # What comes next is the sum of the block before this one; at last it is this rank's own.
        coming = allocate((owner - 1) % ranks.world)
        pending = ranks.pass_on((leaving,), (coming,))
    if needs[1]:
        for work in pending:
            work.wait()
        totals[1] = coming
    return [
        total.to(t.dtype) if need else None
        for total, t, need in zip(totals, like, needs, strict=False)
    ]
