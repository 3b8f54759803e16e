"""One modality against itself: the other rows of an instance, and the soft loss without itself.

Both sides of the batch are the same rows, so that S has every row's similarity with itself on its
diagonal. Folds make it a positive; it is taken out here, and is then neither positive nor negative.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mxm_kernels.algebra import selection as draws
from mxm_kernels.algebra.averages import average_over_negatives
from mxm_kernels.algebra.batch import Batch
from mxm_kernels.algebra.direction import Direction
from mxm_kernels.algebra.losses import logsumexp_rows
from mxm_kernels.algebra.run import directions
from mxm_kernels.segments import Segments, take


def other_rows(batch: Batch, d: Direction) -> Direction:
    """The rows of S without its diagonal, which is among the positives of every row."""
    tables, device = batch.tables, batch.x.device
    numbers = torch.arange(tables.images, device=device)
    mine, _ = batch.own_rows(numbers, numbers)
    rows = len(mine)
    offsets = d.segments.offsets - torch.arange(rows + 1, device=device)
    others = len(d.S) - rows
    owners = torch.arange(rows, device=device).repeat_interleave(offsets.diff(), output_size=others)
    # A row's own place among its positives is its rank; those after it move up by one.
    lanes = torch.arange(others, device=device) - offsets[owners]
    lanes = lanes + (lanes >= tables.text_ranks[mine][owners])
    kept = d.segments.offsets[owners] + lanes
    return replace(
        d, S=take(d.S, kept), segments=Segments(offsets, owners), columns=tables.texts - 1
    )


def weights_of_others(batch: Batch, d: Direction, rounds: int | None) -> Tensor:
    """Of the positives of this process's rows; drawn for the whole batch, if they are drawn."""
    if rounds is None:
        return 1 / d.counts[d.segments.owners].to(batch.dtype)
    tables = batch.tables
    offsets = tables.image_offsets - torch.arange(tables.images + 1, device=batch.x.device)
    others = tables.pairs - tables.images
    every = draws.drawn_frequencies(
        offsets, int(rounds), batch.generator, others, batch.dtype, batch.backend
    )
    if batch.shard is None:
        return every
    first = batch.shard.pairs[0].start - batch.shard.first_image
    return every[first : first + len(d.S)]


def soft_rows_of_others(batch: Batch, d: Direction) -> Tensor:
    """Cross-entropy against the teacher's softmax over the other rows.

        q_i = logsumexp_{j != i} S_ij - sum_{j != i} softmax_{j != i}(T_i.) S_ij

    ``d`` is the direction of :func:`other_rows`. The sum has two parts, over the negatives and
    over the other positives, each with its share of the softmax.
    """
    assert batch.teacher is not None
    a, t = batch.teacher[0], batch.teacher_scales[0]
    scales = t, t
    with torch.no_grad():
        alone = replace(batch, x=a, y=a, scales=scales, teacher_scales=scales)
        T, _ = directions(alone, soft=False)
        others = other_rows(batch, T)
        joint = logsumexp_rows(others)
        negatives = (T.n - joint).exp()
        positives = (others.S - others.spread(joint)).exp()
    z = batch.x.to(batch.dtype)
    m = average_over_negatives(batch, z, a.to(batch.dtype), t, T.n, T.S)
    u = negatives * batch.scales[0] * (z * m).sum(1) + d.sum(positives * d.S)
    return logsumexp_rows(d) - u
