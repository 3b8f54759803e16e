"""Run the operator for a batch: the list of rows, with what the options ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from mxm_kernels.backends.interface import SigmoidStatistics, Statistics
from mxm_kernels.core.arguments import Teacher
from mxm_kernels.core.batch import Batch
from mxm_kernels.core.queues import QueuedRows
from mxm_kernels.core.rows import Rows
from mxm_kernels.distributed.all_gather import statistics_over_ranks
from mxm_kernels.folds.segments import Segments, segment_logsumexp, segment_sum
from mxm_kernels.ops.float8 import float8_teacher, largest_of
from mxm_kernels.ops.statistics import statistics


def rows_of(batch: Batch, *, reads_teacher: bool) -> Rows:
    """The list of rows, with the teacher's averages where they are read."""
    teacher = batch.teacher if reads_teacher else None
    if batch.one_scale:
        made = _run(batch, batch.x, batch.y, teacher, batch.scales[0], batch.teacher_scales[0])
        scale = batch.scales[0]
    else:
        made, scale = _with_row_scales(batch, teacher), torch.cat(batch.scales)
    rows = _as_rows(batch, made, scale)
    if batch.options.label_smoothing:
        rows = _with_negative_sum(rows)
    return rows if batch.queues == (None, None) else _with_queues(rows)


def _as_rows(batch: Batch, made: Statistics, scale: Tensor) -> Rows:
    """The list, without the vectors that there are not."""
    u, t, hardest, entropy = [v if len(v) else None for v in made[2:6]]
    return Rows(
        made.neg_lse,
        made.positives,
        u,
        scale,
        batch.segments,
        batch,
        teacher_lse=t,
        hardest=hardest,
        entropy=entropy,
    )


def _run(
    b: Batch, x: Tensor, y: Tensor, teacher: Teacher | None, s: Tensor, t: Tensor
) -> Statistics:
    """The operator, on this process or over the ranks."""
    teacher, t = _as_quantized(b, teacher, t)
    teacher_scale = None if teacher is None else t
    diagnostics = b.options.diagnostics is not None
    if b.shard is not None:
        return statistics_over_ranks(
            b.shard, x, y, teacher, s, teacher_scale, b.backend, diagnostics
        )
    return statistics(x, y, teacher, s, teacher_scale, b.tables, b.backend, diagnostics)


def _as_quantized(b: Batch, teacher: Teacher | None, t: Tensor) -> tuple[Teacher | None, Tensor]:
    """Teacher features (M, D'), (N, D') and their scale () in the batch's ``teacher_dtype``.

    Over ranks the factors of the rounding are those of all rows, so that one process has the same.
    """
    if teacher is None or b.options.teacher_dtype is None:
        return teacher, t
    largest = largest_of(*teacher, b.dtype)
    if b.shard is not None:
        largest = b.shard.ranks.greatest(largest)
    return float8_teacher(teacher, t, largest, b.backend)


def scaled(features: Tensor, scale: Tensor) -> Tensor:
    """Features (rows, D) times their scale, (rows,) or (), in its dtype, rounded once."""
    rows = scale.expand(features.shape[0])[:, None]
    return (features.to(scale.dtype) * rows).to(features.dtype)


_Made = TypeVar("_Made", Statistics, SigmoidStatistics)


def with_row_scales(b: Batch, run: Callable[[int, Tensor, Tensor], _Made]) -> _Made:
    """Two runs; in each the features of one side carry its scales, and it gives their rows.

    ``run`` takes the side (0 or 1), x (M, D) and y (N, D), for a scale of 1.
    """
    first = run(0, scaled(b.x, b.scales[0]), b.y)
    second = run(1, b.x, scaled(b.y, b.scales[1]))
    images, pairs = len(b.x), b.image_positives

    def join(name: str) -> Tensor:
        a, z = getattr(first, name), getattr(second, name)
        if name == "kept" or not len(a):  # of no row
            return a
        cut = pairs if name == "positives" else images
        return torch.cat([a[:cut], z[cut:]])

    return first._replace(**{name: join(name) for name in first._fields})


def _with_row_scales(b: Batch, teacher: Teacher | None) -> Statistics:
    """The operator with a scale for each row, in the teacher's features too."""
    one = b.x.new_ones((), dtype=b.dtype)

    def run(side: int, x: Tensor, y: Tensor) -> Statistics:
        if teacher is None:
            return _run(b, x, y, None, one, one)
        own = scaled(teacher[side], b.teacher_scales[side])
        return _run(b, x, y, (teacher[0], own) if side else (own, teacher[1]), one, one)

    return with_row_scales(b, run)


def _with_negative_sum(rows: Rows) -> Rows:
    """The rows with the sums of S over their negatives: no matrix, S of the operator's features."""
    b = rows.batch
    sums = b.sum(torch.stack([b.x.sum(0, dtype=b.dtype), b.y.sum(0, dtype=b.dtype)]))
    totals = [
        _row_sums(f, total, s)
        for f, total, s in zip((b.x, b.y), (sums[1], sums[0]), b.scales, strict=True)
    ]
    negative_sum = torch.cat(totals) - rows.sum(rows.positives)
    return replace(rows, negative_sum=negative_sum, label_smoothing=b.options.label_smoothing)


def _row_sums(x: Tensor, total: Tensor, scale: Tensor) -> Tensor:
    """(rows,) sum_j S_ij = s <x_i, sum_j y_j>, with ``total`` (D,) the sum of the y_j."""
    if scale.ndim:
        return torch.mv(scaled(x, scale).to(total.dtype), total)
    return scale * torch.mv(x.to(total.dtype), total)


class _Queued(NamedTuple):
    """Statistics of the rows over their queues, (R,) each; neutral numbers without a queue."""

    neg_lse: Tensor  # log-sum-exp over the queue's negatives
    num_negatives: Tensor
    negative_sum: Tensor  # of S over them
    excluded_lse: Tensor  # log-sum-exp of S over the queue's rows that are no negatives
    teacher_mean: Tensor
    teacher_lse: Tensor
    hardest: Tensor
    entropy: Tensor


def _with_queues(rows: Rows) -> Rows:
    """Merge queues into the list: more negatives, and what their folds leave out."""
    b = rows.batch
    sides = [
        _neutral(b, side) if queue is None else _queued(rows, side, queue)
        for side, queue in enumerate(b.queues)
    ]
    more = _Queued(*(torch.cat(pair) for pair in zip(*sides, strict=True)))
    merged = replace(
        rows,
        neg_lse=add_log(rows.neg_lse, more.neg_lse),
        queued_negatives=more.num_negatives,
    )
    if rows.negative_sum is not None:
        merged = replace(merged, negative_sum=rows.negative_sum + more.negative_sum)
    if rows.hardest is not None:
        merged = replace(merged, hardest=torch.maximum(rows.hardest, more.hardest))
    if rows.teacher_mean is None or rows.teacher_lse is None:
        return merged
    if any(queue is not None and queue.tables.pairs for queue in b.queues):
        merged = replace(merged, excluded_lse=more.excluded_lse)
    joint = torch.logaddexp(rows.teacher_lse, more.teacher_lse)
    ours, theirs = (rows.teacher_lse - joint).exp(), (more.teacher_lse - joint).exp()
    merged = replace(
        merged,
        teacher_mean=ours * rows.teacher_mean + theirs * more.teacher_mean,
        teacher_lse=joint,
    )
    if rows.entropy is None:
        return merged
    # The teacher's mean of its own similarities is its log-sum-exp minus the entropy.
    means = [
        (t - h).masked_fill(t == -torch.inf, 0)
        for t, h in ((rows.teacher_lse, rows.entropy), (more.teacher_lse, more.entropy))
    ]
    return replace(merged, entropy=joint - ours * means[0] - theirs * means[1])


def _neutral(b: Batch, side: int) -> _Queued:
    """Neutral numbers for the rows of a side without a queue."""
    zero = b.x.new_zeros(len((b.x, b.y)[side]), dtype=b.dtype)
    nothing = torch.full_like(zero, -torch.inf)
    return _Queued(nothing, zero, zero, nothing, zero, nothing, nothing, zero)


def _queued(rows: Rows, side: int, queue: QueuedRows) -> _Queued:
    """Run the operator for the rows of one side and the queue that they see."""
    b = rows.batch
    x, taught = (b.x, b.y)[side], b.teacher is not None and rows.teacher_mean is not None
    teacher_rows = b.teacher[side] if b.teacher is not None and taught else None
    s, t = b.scales[side], b.teacher_scales[side]
    if teacher_rows is not None and teacher_rows.shape[1] != x.shape[1]:
        raise ValueError(
            f"{queue.name} stands in the teacher's matrix too: the teacher's features must have "
            f"its dimension {x.shape[1]}, got {teacher_rows.shape[1]}"
        )
    if s.ndim:  # a scale for each row: the features carry it
        x = scaled(x, s)
        teacher_rows = None if teacher_rows is None else scaled(teacher_rows, t)
        s = t = b.x.new_ones((), dtype=b.dtype)
    teacher = None if teacher_rows is None else (teacher_rows, queue.features)
    made = _run(replace(b, shard=None, tables=queue.tables), x, queue.features, teacher, s, t)
    length, tables = len(x), queue.tables
    segments = Segments(tables.offsets[: length + 1], tables.pair_images)
    excluded = made.positives[: tables.pairs]
    # A feature of -inf in the queue makes terms vanish: 0 times a sum that is not finite is NaN.
    total = queue.features.sum(dtype=b.dtype)
    neutral = _neutral(b, side)

    def of_rows(name: str) -> Tensor:
        value = getattr(made, name)
        return value[:length] if len(value) else getattr(neutral, name)

    negative_sum = neutral.negative_sum
    if b.options.label_smoothing:
        sums = _row_sums(x, queue.features.sum(0, dtype=b.dtype), s)
        negative_sum = sums - segment_sum(excluded, segments)
    return _Queued(
        torch.add(of_rows("neg_lse"), total, alpha=0),
        (len(queue.features) - segments.offsets.diff()).to(b.dtype),
        negative_sum,
        segment_logsumexp(excluded, segments),
        *map(of_rows, _Queued._fields[4:]),
    )


class _AddLog(torch.autograd.Function):
    """log(exp(a) + exp(b)); where both are -inf its gradient is 0, not NaN."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return torch.logaddexp(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        difference = (a - b).masked_fill((a == -torch.inf) & (b == -torch.inf), 0)
        of_a = grad * torch.sigmoid(difference)
        return of_a, grad - of_a


def add_log(a: Tensor, b: Tensor) -> Tensor:
    """(rows,) log(exp(a) + exp(b)), -inf where both are."""
    return _AddLog.apply(a, b)
