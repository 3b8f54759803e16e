"""Run the operator for a batch: both directions of S, with what options add to them.

Where options need the matrix again they run the operator again: a queue once for its side, and
a scale for each row and column once for each direction.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mxm_kernels.algebra.batch import Batch
from mxm_kernels.algebra.direction import Direction, add_log, image_to_text, text_to_image
from mxm_kernels.algebra.float8 import as_read
from mxm_kernels.algebra.queues import QueuedRows
from mxm_kernels.operators.statistics import of_columns, of_rows, statistics
from mxm_kernels.parallel.over_ranks import statistics_over_ranks
from mxm_kernels.segments import Segments


def directions(batch: Batch, *, soft: bool) -> tuple[Direction, Direction]:
    """Run the operator; ``soft`` says whether the teacher's statistics are wanted."""
    b = batch if soft else replace(batch, teacher=None)
    if b.one_scale:
        t = b.teacher_scales[0] if b.teacher is not None else None
        rows, cols = _run(b, b.x, b.y, b.teacher, b.scales[0], t)
    else:
        rows, _ = _with_row_scales(b, 0)
        _, cols = _with_row_scales(b, 1)
    if b.options.label_smoothing:
        sums = b.sum(torch.stack([b.x.sum(0, dtype=b.dtype), b.y.sum(0, dtype=b.dtype)]))
        rows = replace(rows, total=_row_totals(b.x, sums[1], b.scales[0]))
        cols = replace(cols, total=_row_totals(b.y, sums[0], b.scales[1]))
    seen_by_images, seen_by_texts = b.queues
    if seen_by_images is not None:
        rows = _with_queue(b, 0, rows, seen_by_images)
    if seen_by_texts is not None:
        cols = _with_queue(b, 1, cols, seen_by_texts)
    return rows, cols


def rows_of(batch: Batch) -> Direction:
    """The rows of S alone, of a batch with one scale and no option that adds to them."""
    b = batch
    if b.shard is not None:
        return directions(b, soft=False)[0]
    stats = statistics(b.x, b.y, None, b.scales[0], None, b.tables, b.backend)
    return image_to_text(of_rows(stats), b.segments[0], b.tables, b.scales[0], b.backend)


def _run(
    b: Batch,
    x: Tensor,
    y: Tensor,
    teacher: tuple[Tensor, Tensor] | None,
    s: Tensor,
    t: Tensor | None,
) -> tuple[Direction, Direction]:
    """The operator, on this process or over the ranks."""
    teacher, t = as_read(b, teacher, t)
    if b.shard is not None:
        rows, cols = statistics_over_ranks(b.shard, x, y, teacher, s, t, b.backend, b.diagnosed)
    else:
        stats = statistics(x, y, teacher, s, t, b.tables, b.backend, b.diagnosed)
        rows, cols = of_rows(stats), of_columns(stats, b.tables)
    of_images, of_texts = b.segments
    return (
        image_to_text(rows, of_images, b.tables, s, b.backend),
        text_to_image(cols, of_texts, b.tables, s, b.backend),
    )


def _with_row_scales(b: Batch, side: int) -> tuple[Direction, Direction]:
    """Directions of S with a scale for each row of one side: features carry the scales."""
    pair, one = [b.x, b.y], b.x.new_ones((), dtype=b.dtype)
    pair[side] = scaled(pair[side], b.scales[side])
    teacher, t = None, None
    if b.teacher is not None:
        made = list(b.teacher)
        made[side] = scaled(made[side], b.teacher_scales[side])
        teacher, t = (made[0], made[1]), one
    rows, cols = _run(b, pair[0], pair[1], teacher, one, t)
    return replace(rows, scale=b.scales[0]), replace(cols, scale=b.scales[1])


def scaled(features: Tensor, scale: Tensor) -> Tensor:
    """Each row times its scale, multiplied in the dtype of the loss, rounded once."""
    rows = scale.expand(features.shape[0])[:, None]
    return (features.to(scale.dtype) * rows).to(features.dtype)


def _row_totals(x: Tensor, total: Tensor, scale: Tensor) -> Tensor:
    """(rows,) sum_j S_ij = s <x_i, sum_j y_j>: no matrix; of the S that the operator forms."""
    if scale.ndim:
        return torch.mv(scaled(x, scale).to(total.dtype), total)
    return scale * torch.mv(x.to(total.dtype), total)


def _with_queue(b: Batch, side: int, d: Direction, queue: QueuedRows) -> Direction:
    """Merge the rows of a queue into a direction: negatives, and what its folds leave out."""
    x = (b.x, b.y)[side]
    name, features, tables = queue
    if b.teacher is not None and b.teacher[0].shape[1] != x.shape[1]:
        raise ValueError(
            f"{name} stands in the teacher's matrix too: the teacher's features must have its "
            f"dimension {x.shape[1]}, got {b.teacher[0].shape[1]}"
        )
    teacher, s, t = None, b.scales[side], b.teacher_scales[side]
    own = None if b.teacher is None else b.teacher[side]
    if s.ndim:  # a scale for each row
        x, own = scaled(x, s), None if own is None else scaled(own, t)
        s = t = b.x.new_ones((), dtype=b.dtype)
    if own is not None:
        teacher = own, features
    teacher, teacher_scale = as_read(b, teacher, None if own is None else t)
    stats = statistics(x, features, teacher, s, teacher_scale, tables, b.backend, b.diagnosed)
    segments = Segments(tables.image_offsets, tables.pair_images)
    more = image_to_text(of_rows(stats), segments, tables, d.scale, b.backend)
    merged = replace(d, n=add_log(d.n, more.n), columns=d.columns + more.columns - more.counts)
    if b.diagnosed:
        merged = replace(merged, m=torch.maximum(d.m, more.m))
    if own is not None:
        joint = torch.logaddexp(d.t, more.t)
        shares = (d.t - joint).exp(), (more.t - joint).exp()
        u = shares[0] * d.u + shares[1] * more.u
        merged = replace(merged, u=u, t=joint, excluded=more.logsumexp(more.S))
        if b.diagnosed:
            h = joint - shares[0] * (d.t - d.h) - shares[1] * (more.t - more.h)
            merged = replace(merged, h=h)
    if d.total is not None:
        total = _row_totals(x, features.sum(0, dtype=b.dtype), s) - more.sum(more.S)
        merged = replace(merged, total=d.total + total)
    return merged
