"""The list of rows of a batch: what the operator gives, and what options add to it."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from mxm_kernels.backends.interface import PairRules
from mxm_kernels.backends.queues import share
from mxm_kernels.backends.row_interface import QueuePlace, RowSums
from mxm_kernels.backends.row_scales import scaled
from mxm_kernels.core.add_log import add_log
from mxm_kernels.core.batch import Batch
from mxm_kernels.core.queues import QueuedRows
from mxm_kernels.core.rows import Rows
from mxm_kernels.core.run import RowStatistics, run, run_batch
from mxm_kernels.core.vectors import NO_ID
from mxm_kernels.folds.segments import Segments, segment_logsumexp
from mxm_kernels.folds.tables import FoldTables, kept_with_tables
from mxm_kernels.ops.merge_queue import merge_queue


def rows_of(batch: Batch, *, reads_teacher: bool) -> Rows:
    """The list of rows, with the teacher's averages where they are read."""
    taught = reads_teacher and batch.teacher is not None
    teacher = batch.teacher if taught or batch.filters else None
    made = run_batch(batch, teacher, has_soft=taught)
    rows = _as_rows(batch, made, taught=taught)
    for side, queue in enumerate(batch.queues):
        if queue is not None:
            rows = _with_queue(rows, side, queue, made.thresholds)
    return rows


def _as_rows(batch: Batch, made: RowStatistics, *, taught: bool) -> Rows:
    """The list, without the vectors that there are not; a rank may have no row in any of them."""
    diagnosed = batch.options.diagnostics is not None
    return Rows(
        made.neg_lse,
        made.positives,
        made.teacher_mean if taught else None,
        batch.segments,
        batch,
        neg_sum=made.neg_sum if batch.options.label_smoothing else None,
        excluded_lse=made.excluded_lse if taught and batch.removes else None,
        counted_negatives=made.num_negatives if batch.removes else None,
        label_smoothing=batch.options.label_smoothing,
        teacher_lse=made.teacher_lse if taught else None,
        hardest=made.hardest if diagnosed else None,
        entropy=made.entropy if diagnosed and taught else None,
    )


def _with_queue(rows: Rows, side: int, queue: QueuedRows, thresholds: Tensor | None) -> Rows:
    """The list after the rows of one side have seen a queue: its columns are in their sums.

    ``thresholds`` (R,) are those of the filter, where there is one.
    """
    b, taught = rows.batch, rows.teacher_mean is not None
    rules = rules_with_queue(b, side, queue, thresholds)
    made = _run_queue(b, side, queue, rules, taught)
    nothing = made.neg_lse.new_empty(0)
    u, t = (nothing if v is None else v for v in (rows.teacher_mean, rows.teacher_lse))
    place = QueuePlace(len(b.x) if side else 0, len((b.x, b.y)[side]))
    sums = merge_queue(
        RowSums(rows.neg_lse, u, t),
        RowSums(made.neg_lse, made.teacher_mean, made.teacher_lse),
        queue.features.sum(dtype=b.dtype),
        place,
        b.backend,
    )
    others = len((b.y, b.x)[side])
    if b.removes:
        more = _padded(made.num_negatives[: queue.tables.images], side, others, 0.0)
    else:
        more = _queued_negatives(queue.tables, side, others, b.dtype)
    before = rows.queued_negatives
    merged = replace(
        rows,
        neg_lse=sums.neg_lse,
        queued_negatives=more if before is None else before + more,
        teacher_mean=sums.teacher_mean if taught else None,
        teacher_lse=sums.teacher_lse if taught else None,
    )
    if rows.neg_sum is not None:
        queued = _padded(made.neg_sum[: queue.tables.images], side, others, 0.0)
        merged = replace(merged, neg_sum=rows.neg_sum + queued)
    return _with_rest(rows, merged, side, queue, made)


def _queue_segments(queue: QueuedRows) -> Segments:
    """The rows of a queue that are no negatives of each row of its side."""
    tables = queue.tables
    return Segments(tables.offsets[: tables.images + 1], tables.pair_images)


def rules_with_queue(
    b: Batch, side: int, queue: QueuedRows, thresholds: Tensor | None = None
) -> PairRules:
    """The rules of a side's rows, then of the queue's, where either has them.

    ``thresholds`` (R,) are those of the filter of the batch, None without one.
    """
    own = PairRules(*[None if v is None else b.halves(v)[side] for v in b.rules])
    if thresholds is not None:
        own = own._replace(thresholds=b.halves(thresholds)[side])
    queued = PairRules(queue.offsets, None, queue.exclude_ids, queue.within_ids, None)
    nothing = 0.0, 0.0, NO_ID, NO_ID, torch.inf
    like, joined = queue.features, []
    for mine, its, value in zip(own, queued, nothing, strict=True):
        dtype = torch.int64 if value == NO_ID else b.dtype
        if mine is None and its is not None:
            mine = like.new_full((len((b.x, b.y)[side]),), value, dtype=dtype)
        elif its is None and mine is not None:
            its = like.new_full((len(like),), value, dtype=dtype)
        joined.append(None if mine is None or its is None else torch.cat([mine, its]))
    return PairRules(*joined)


def _run_queue(
    b: Batch, side: int, queue: QueuedRows, rules: PairRules, taught: bool
) -> RowStatistics:
    """The operator for the rows of a side and the queue's."""
    x, s, t, unit = (b.x, b.y)[side], b.scales[side], b.teacher_scales[side], None
    teacher_rows = b.teacher[side] if b.teacher is not None and (taught or b.filters) else None
    if teacher_rows is not None and teacher_rows.shape[1] != queue.teacher.shape[1]:
        raise ValueError(
            f"the teacher's features must have the dimension D of {queue.teacher_name}, "
            f"{queue.teacher.shape[1]}, got {teacher_rows.shape[1]}: a soft loss and the filter "
            "compare them; Queue takes the teacher's features of its rows as teacher_features"
        )
    if s.ndim:  # a scale for each row: the features carry it
        x = scaled(x, s)
        if teacher_rows is not None:
            teacher_rows = scaled(teacher_rows, t)
            unit = torch.cat([t.expand(len(x)), t.new_ones(len(queue.features))])
        s = t = b.x.new_ones((), dtype=b.dtype)
    teacher = None if teacher_rows is None else (teacher_rows, queue.teacher)
    alone = replace(b, shard=None, tables=queue.tables, rules=rules)
    return run(alone, x, queue.features, teacher, s, t if taught else None, unit)


@kept_with_tables
def _queued_negatives(tables: FoldTables, side: int, others: int, dtype: torch.dtype) -> Tensor:
    """(R,) how many of a queue's rows are negatives; 0 for the ``others``, which do not see it."""
    own = (tables.texts - tables.offsets.diff()[: tables.images]).to(dtype)
    return _padded(own, side, others, 0.0)


def _padded(own: Tensor, side: int, others: int, value: float) -> Tensor:
    """(R,) the numbers of the rows of a side, and a value for the others."""
    rest = own.new_full((others,), value)
    return torch.cat([rest, own] if side else [own, rest])


def _with_rest(rows: Rows, merged: Rows, side: int, queue: QueuedRows, made: RowStatistics) -> Rows:
    """``merged`` with the fields that the queue's folds change; ``rows`` is without the queue."""
    b, tables = rows.batch, queue.tables
    count, others = tables.images, len((b.y, b.x)[side])
    if merged.teacher_lse is not None and (tables.pairs or b.removes):
        parts = [] if rows.excluded_lse is None else [rows.excluded_lse]
        if tables.pairs:
            same = segment_logsumexp(made.positives[: tables.pairs], _queue_segments(queue))
            parts.append(_padded(same, side, others, -torch.inf))
        if b.removes:
            parts.append(_padded(made.excluded_lse[:count], side, others, -torch.inf))
        merged = replace(merged, excluded_lse=reduce(add_log, parts))
    if rows.hardest is not None:
        own = _padded(made.hardest[:count], side, others, -torch.inf)
        merged = replace(merged, hardest=torch.maximum(rows.hardest, own))
    if rows.entropy is None or rows.teacher_lse is None or merged.teacher_lse is None:
        return merged
    # Of the queue's share p: p h' + (1 - p) h, and the entropy of the choice between the two.
    lse = _padded(made.teacher_lse[:count], side, others, -torch.inf)
    own = _padded(made.entropy[:count], side, others, 0.0)
    p, q = share(lse, rows.teacher_lse), share(rows.teacher_lse, lse)
    choice = torch.special.entr(p) + torch.special.entr(q)
    return replace(merged, entropy=torch.lerp(rows.entropy, own, p) + choice)
