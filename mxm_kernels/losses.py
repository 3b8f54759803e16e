"""The loss algebra: each loss is a few lines over the operator's statistics.

Everything here is per row of one direction and touches O(rows + P) numbers. With P positive
pairs, S_ik a positive similarity, n_i the log-sum-exp over the negatives and u_i the
teacher's average of the row:

    hard      h_i = sum_{k in Pos(i)} w_ik softplus(n_i - S_ik)
    soft      q_i = logaddexp(n_i, logsumexp_{k in Pos(i)} S_ik) - u_i

from MXM-CLR (arXiv 2303.10839), equations 6 and 8: softplus(n_i - S_ik) is InfoNCE with the
other positives masked, and the rounds of its random selection are the weights w.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mxm_kernels.backends.problem import Statistics
from mxm_kernels.fold_tables import FoldTables
from mxm_kernels.segments import Segments, permute, segment_logsumexp, segment_sum, spread


class Direction(NamedTuple):
    """Image-to-text or text-to-image: the rows (columns) of S and their positives."""

    negatives: Tensor  # (rows,) n, log-sum-exp over the negatives
    positives: Tensor  # (P,) S of the positive pairs, sorted by row
    average: Tensor  # (rows,) u, or empty without a teacher
    segments: Segments
    with_positive: int  # number of rows that have a positive


def directions(statistics: Statistics, tables: FoldTables) -> tuple[Direction, Direction]:
    """Split the statistics into image-to-text and text-to-image."""
    s = statistics
    columns = permute(s.positives, tables.text_slots, tables.slot_places)
    return (
        Direction(
            s.n_rows,
            s.positives,
            s.u_rows,
            Segments(tables.image_offsets, tables.pair_images),
            tables.images_with_positive,
        ),
        Direction(
            s.n_cols,
            columns,
            s.u_cols,
            Segments(tables.text_offsets, tables.text_owners),
            tables.texts_with_positive,
        ),
    )


def hard_rows(direction: Direction, weights: Tensor) -> Tensor:
    """Hard relationship loss per row, (rows,); weights (P,) as drawn. 0 without a positive."""
    margin = spread(direction.negatives, direction.segments) - direction.positives
    # Above the threshold softplus returns its argument: at 40 that is exact in float64.
    return segment_sum(weights * softplus(margin, threshold=40), direction.segments)


def soft_rows(direction: Direction) -> Tensor:
    """Soft relationship loss per row, (rows,): cross-entropy against the teacher's row."""
    positives = segment_logsumexp(direction.positives, direction.segments)
    return torch.logaddexp(direction.negatives, positives) - direction.average
