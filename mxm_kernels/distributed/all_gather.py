"""The operators over the ranks of a process group: the statistics of the whole batch.

Rank r has M_r image rows and N_r text rows. It computes its images against all texts, so its
rows of S are whole and its columns are the part over its images. Symbols as in
``backends/interface.py``, with a superscript for a rank's part:

    forward     gather y (and the teacher's Y), run the operator on (x^r, y)
                send the parts of column j, and S of its positive pairs, to the rank of text j
                n_j = logsumexp_r n_j^r      t_j = logsumexp_r t_j^r
                u_j = sum_r exp(t_j^r - t_j) u_j^r
    backward    send back dn_j^r = dn_j exp(n_j^r - n_j), du_j^r = du_j exp(t_j^r - t_j), dS_pos
                run the operator's backward: dx^r, ds^r and a part of dy
                send the parts of dy to the ranks of their rows, which add them up in rank order

What a rank returns is about its own rows and columns, and complete, so the losses are those of
one process. Only their means are summed over the ranks, by an all-reduce whose gradient is
summed too: every rank's gradient is W times its part of the gradient of the loss, and an engine
that averages over W ranks, as DDP and FSDP do, gets the gradient of one process.

A rank sends in a step, in bytes, with W ranks of N_r texts, e bytes for a feature, and k = 3
numbers for a column forward and 2 back with a teacher, 1 and 1 without:

    features        (W - 1) N_r (D + D') e       all-gather (to the longest shard), D' of a teacher
                                                 (in float8 with e = 1 for it)
    gradients       (N - N_r) D e                all-to-all, added up in float32
    columns         (N - N_r) k 4 forward, (W - 1) N_r k 4 back
    pairs           4 for each that straddles ranks, each way
    ids             (W - 1) (M_r + N_r) 8
    rules           (W - 1) N_r 4 or 8 for each that is given (offsets, ids, thresholds), and
                    (N - N_r) 4 back for offsets; k is up to 2 more forward, 1 more back

bench/models/traffic.py has the exact number without rules. Each rank's dy is rounded to the dtype
of the features before it is sent. gloo on CPUs is tested; NCCL has the same collectives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mxm_kernels.backends.interface import PairRules, SigmoidStatistics, Statistics, Upstream
from mxm_kernels.distributed.merging import (
    Whole,
    joined,
    merge,
    names_of,
    of_rows,
    packed,
    shared_out,
    whole_of,
    with_columns,
)
from mxm_kernels.distributed.ring import ring_sigmoid, ring_statistics
from mxm_kernels.distributed.shards import Shard, at_first_places
from mxm_kernels.ops.library import memory_for, wanted
from mxm_kernels.ops.sigmoid_statistics import sigmoid_statistics, sigmoid_statistics_backward
from mxm_kernels.ops.statistics import statistics, statistics_backward

_DIFFERENTIABLE, _RULES = len(Upstream._fields), len(PairRules._fields)


def statistics_over_ranks(
    shard: Shard,
    x: Tensor,
    y: Tensor,
    teacher: tuple[Tensor, Tensor] | None,
    scale: Tensor,
    teacher_scale: Tensor | None,
    backend: str,
    diagnostics: bool,
    neg_sum: bool,
    rules: PairRules,
) -> Statistics:
    """The statistics of this rank's rows, images first, over the whole batch.

    All-gather keeps S and T of the rank's images within the memory budget; a ring keeps nothing.
    ``teacher`` are the features of this rank's images and, but in a ring, of the texts of all
    ranks; ``rules`` are of this rank's rows.
    """
    teacher_x, teacher_y = teacher if teacher is not None else (None, None)
    function = ring_statistics if shard.ring else _ShardStatistics.apply
    memory = memory_for(x, y, scale)
    removes = any(rule is not None for rule in rules[2:])
    names = names_of(teacher_scale is not None, diagnostics, neg_sum, removes)
    outputs = function(
        shard, backend, memory, names, x, y, scale, teacher_x, teacher_y, teacher_scale, *rules
    )
    return Statistics._make([*outputs, *[x.new_empty(0)] * 3])


class _ShardStatistics(torch.autograd.Function):
    """The statistics of this rank's rows and columns, with all their communication.

    One function, so that every rank enters the collectives of its backward, in one order,
    whatever rows it has.
    """

    @staticmethod
    def forward(ctx, shard, backend, memory, names, x, y, scale, teacher_x, teacher_y, t, *rules):
        every_y = shard.ranks.gather(y, shard.texts)
        teacher = None if teacher_x is None else (teacher_x, teacher_y)
        of_all = shard.with_every_text(PairRules(*rules), len(x))
        asked = "hardest" in names, "neg_sum" in names
        given = x, every_y, teacher, scale, t, shard.row_tables, backend
        s = statistics(*given, *asked, memory, rules=of_all)
        parts = shard.to_columns(packed(s, names, slice(len(x), None)))
        slots = s.positives[: len(shard.sent_slots)]
        merged = merge(parts, names)
        outputs = joined(of_rows(s, len(x)), merged, slots, shard.pairs_to_columns(slots))
        features = x, every_y, scale, teacher_x, teacher_y, t
        ctx.save_for_backward(*features, *of_all, *s, parts, *whole_of(merged))
        ctx.shard, ctx.backend, ctx.memory, ctx.names = shard, backend, memory, names
        ctx.mark_non_differentiable(*outputs[_DIFFERENTIABLE:])
        ctx.set_materialize_grads(True)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, dn, dS, du, dm, de, *_):
        shard = ctx.shard
        x, every_y, scale, teacher_x, teacher_y, t, *saved = ctx.saved_tensors
        rules, saved = PairRules(*saved[:_RULES]), saved[_RULES:]
        *saved, parts, n, e, t_cols = saved
        d = Upstream(dn, at_first_places(shard.slot_gradients(dS)), du, dm, de)
        columns, whole = slice(len(x), None), Whole(n, e, t_cols)
        every = shard.from_columns(shared_out(d, columns, parts, whole, ctx.names))
        upstream = with_columns(d, len(x), every, ctx.names)
        needs = [*ctx.needs_input_grad[4:7], ctx.needs_input_grad[10]]
        teacher = None if teacher_x is None else (teacher_x, teacher_y)
        dx, dy, ds, db = statistics_backward(
            x,
            every_y,
            teacher,
            scale,
            t,
            shard.row_tables,
            Statistics(*saved),
            upstream,
            needs,
            ctx.backend,
            ctx.memory,
            rules,
        )
        if needs[1]:
            dy = shard.sum_columns(dy, dn.dtype)
        if needs[3]:
            db = shard.of_own_texts(db, len(x))
        *features, offsets = wanted((dx, dy, ds, db), needs)
        return (*[None] * 4, *features, *[None] * 3, offsets, *[None] * (_RULES - 1))


def sigmoid_over_ranks(
    shard: Shard,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    backend: str,
    rules: PairRules,
) -> SigmoidStatistics:
    """The sigmoid statistics of this rank's rows, images first, over the whole batch."""
    function = ring_sigmoid if shard.ring else _ShardSigmoid.apply
    memory = memory_for(x, y, scale, bias)
    return SigmoidStatistics(*function(shard, backend, memory, x, y, scale, bias, *rules))


class _ShardSigmoid(torch.autograd.Function):
    """Like :class:`_ShardStatistics`; the parts of a column are sums, and add up."""

    @staticmethod
    def forward(ctx, shard, backend, memory, x, y, scale, bias, *rules):
        every_y = shard.ranks.gather(y, shard.texts)
        of_all = shard.with_every_text(PairRules(*rules), len(x))
        s = sigmoid_statistics(x, every_y, scale, bias, shard.row_tables, backend, memory, of_all)
        cols = s.softplus_sum[len(x) :]
        slots = s.positives[: len(shard.sent_slots)]
        ctx.save_for_backward(x, every_y, scale, bias, s.positives, *of_all)
        ctx.shard, ctx.backend, ctx.memory = shard, backend, memory
        return (
            torch.cat([s.softplus_sum[: len(x)], shard.sum_columns(cols, cols.dtype)]),
            torch.cat([slots, shard.pairs_to_columns(slots)]),
        )

    @staticmethod
    @once_differentiable
    def backward(ctx, dr, dS):
        shard = ctx.shard
        x, every_y, scale, bias, positives, *rules = ctx.saved_tensors
        every = shard.from_columns(dr[len(x) :].expand(shard.ranks.world, -1))
        upstream = SigmoidStatistics(
            torch.cat([dr[: len(x)], every]), at_first_places(shard.slot_gradients(dS))
        )
        needs = list(ctx.needs_input_grad[3:8])
        dx, dy, ds, db, doffsets = sigmoid_statistics_backward(
            x,
            every_y,
            scale,
            bias,
            shard.row_tables,
            positives,
            upstream,
            needs,
            ctx.backend,
            ctx.memory,
            PairRules(*rules),
        )
        if needs[1]:
            dy = shard.sum_columns(dy, dr.dtype)
        if needs[4]:
            doffsets = shard.of_own_texts(doffsets, len(x))
        gradients = wanted((dx, dy, ds, db, doffsets), needs)
        return (None, None, None, *gradients, *[None] * (_RULES - 1))
