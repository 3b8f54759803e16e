"""One modality against itself: the other rows of an instance, and the soft loss without itself.

Both sides of the batch are the same rows, so that S has every row's similarity with itself on its
diagonal. Folds make it a positive; it is taken out here, and is then neither positive nor negative.
Where the other positives are masked, it is enough that it weighs nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mxm_kernels.algebra import selection as draws
from mxm_kernels.algebra.averages import average_over_negatives
from mxm_kernels.algebra.batch import Batch
from mxm_kernels.algebra.direction import Direction
from mxm_kernels.algebra.losses import row_losses
from mxm_kernels.algebra.run import rows_of
from mxm_kernels.backends.problem import Form
from mxm_kernels.fold_tables import FoldTables, kept_with_tables
from mxm_kernels.segments import Segments, take


class _Others(NamedTuple):
    """The positives of some rows without the rows themselves, Q of them."""

    segments: Segments  # of the Q
    places: Tensor  # (Q,) where each is among the positives


def _without_itself(offsets: Tensor, ranks: Tensor, pairs: int) -> _Others:
    """Of rows whose positives ``offsets`` cut, each itself the ``ranks``-th of its own."""
    rows, device = len(ranks), offsets.device
    kept = offsets - torch.arange(rows + 1, device=device)
    numbers = torch.arange(rows, device=device)
    owners = numbers.repeat_interleave(kept.diff(), output_size=pairs - rows)
    # A row's own place among its positives is its rank; those after it move up by one.
    lanes = torch.arange(pairs - rows, device=device) - kept[owners]
    lanes = lanes + (lanes >= ranks[owners])
    return _Others(Segments(kept, owners), offsets[owners] + lanes)


@kept_with_tables
def _others(tables: FoldTables) -> _Others:
    """Of all rows."""
    return _without_itself(tables.image_offsets, tables.text_ranks, tables.pairs)


def other_rows(batch: Batch, d: Direction) -> Direction:
    """The rows of S without its diagonal, which is among the positives of every row."""
    if batch.shard is None:
        others = _others(batch.tables)
    else:
        numbers = torch.arange(batch.tables.images, device=batch.x.device)
        mine, _ = batch.own_rows(numbers, numbers)
        others = _without_itself(d.segments.offsets, batch.tables.text_ranks[mine], len(d.S))
    columns = batch.tables.texts - 1
    return replace(d, S=take(d.S, others.places), segments=others.segments, columns=columns)


def weights_of_others(batch: Batch, rounds: int | None) -> Tensor:
    """(Q,) of the positives of all rows but themselves."""
    if rounds is None:
        return _expected(batch.tables, batch.dtype)
    offsets, owners = _others(batch.tables).segments
    return draws.drawn_frequencies(
        offsets, int(rounds), batch.generator, len(owners), batch.dtype, batch.backend
    )


@kept_with_tables
def _expected(tables: FoldTables, dtype: torch.dtype) -> Tensor:
    offsets, owners = _others(tables).segments
    return 1 / offsets.diff()[owners].to(dtype)


def own_weights_of_others(batch: Batch, d: Direction, rounds: int | None) -> Tensor:
    """Those of this process's rows, of which ``d`` is the direction of :func:`other_rows`."""
    every = weights_of_others(batch, rounds)
    if batch.shard is None:
        return every
    first = batch.shard.pairs[0].start - batch.shard.first_image
    return every[first : first + len(d.S)]


def weights_for_mean(batch: Batch, rounds: int | None) -> Tensor:
    """(P,) of all positives, 0 of a row itself, for a mean over all rows.

    It is then one over the rows that have others.
    """
    if rounds is None:
        return _expected_for_mean(batch.tables, batch.dtype)
    return _for_mean(batch.tables, weights_of_others(batch, rounds))


@kept_with_tables
def _expected_for_mean(tables: FoldTables, dtype: torch.dtype) -> Tensor:
    return _for_mean(tables, _expected(tables, dtype))


def _for_mean(tables: FoldTables, weights: Tensor) -> Tensor:
    weights = weights * (tables.images / rows_with_others(tables).to(weights.dtype))
    return weights.new_zeros(tables.pairs).index_copy_(0, _others(tables).places, weights)


@kept_with_tables
def rows_with_others(tables: FoldTables) -> Tensor:
    """() number of rows that are not alone in their instance."""
    return (tables.image_offsets.diff() > 1).sum()


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
        T = rows_of(alone)
        others = other_rows(batch, T)
        joint = row_losses(others, Form("whole"))
        negatives = (T.n - joint).exp()
        positives = (others.S - others.spread(joint)).exp()
    z = batch.x.to(batch.dtype)
    m = average_over_negatives(batch, z, a.to(batch.dtype), t, T.n, T.S)
    u = negatives * batch.scales[0] * (z * m).sum(1) + d.sum(positives * d.S)
    return row_losses(replace(d, u=u), Form("none"), hard=0.0, soft=1.0)
