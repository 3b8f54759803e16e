"""One direction of a loss: rows of S, the statistics over their negatives, their positives.

Image-to-text reads the rows of S, text-to-image its columns; the losses are written once for
both. Symbols as in ``backends/problem.py``, P positive pairs in the order of this direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxm_kernels.fold_tables import FoldTables
from mxm_kernels.operators.statistics import OneSide
from mxm_kernels.segments import (
    Segments,
    segment_logsumexp,
    segment_max,
    segment_sum,
    spread,
)


@dataclass(frozen=True, eq=False)
class Direction:
    """What the losses of one direction are computed from."""

    n: Tensor  # (rows,) log-sum-exp of S over the negatives, -inf without one
    S: Tensor  # (P,) S of the positive pairs, sorted by row
    u: Tensor  # (rows,) S averaged with the teacher's softmax, or empty without a teacher
    t: Tensor  # (rows,) log-sum-exp of T, or empty
    segments: Segments
    scale: Tensor  # () or (rows,) s
    columns: int | Tensor  # columns that the row looks at: its positives and its negatives
    with_positive: int  # number of rows that have a positive
    m: Tensor  # (rows,) greatest S over the negatives, or empty where it is not wanted
    h: Tensor  # (rows,) entropy of the teacher's targets, or empty
    backend: str  # that runs the operator of the rows
    excluded: Tensor | None = None  # (rows,) log-sum-exp of S over columns that are neither
    total: Tensor | None = None  # (rows,) sum of S over the columns, where it is wanted

    @property
    def counts(self) -> Tensor:
        """(rows,) int64, positives of each row."""
        return self.segments.offsets.diff()

    @property
    def has_negative(self) -> Tensor:
        """(rows,) whether a row has a negative; one whose n is NaN counts, so that it shows."""
        return self.n != -torch.inf

    @property
    def has_positive(self) -> Tensor:
        """(rows,) whether a row has a positive."""
        return self.counts > 0

    def spread(self, rows: Tensor) -> Tensor:
        """(rows,) -> (P,): every pair gets the value of its row."""
        return spread(rows, self.segments)

    def sum(self, pairs: Tensor) -> Tensor:
        """(P,) -> (rows,): sum over the positives of a row, 0 without one."""
        return segment_sum(pairs, self.segments)

    def logsumexp(self, pairs: Tensor) -> Tensor:
        """(P,) -> (rows,): log-sum-exp over the positives of a row, -inf without one."""
        return segment_logsumexp(pairs, self.segments)

    def max(self, pairs: Tensor) -> Tensor:
        """(P,) -> (rows,): greatest value of a row, -inf without one; no gradient."""
        return segment_max(pairs.detach(), self.segments)


def image_to_text(
    rows: OneSide, segments: Segments, tables: FoldTables, scale: Tensor, backend: str
) -> Direction:
    """The rows of S."""
    return Direction(
        **rows._asdict(),
        segments=segments,
        scale=scale,
        columns=tables.texts,
        backend=backend,
        with_positive=tables.images_with_positive,
    )


def text_to_image(
    cols: OneSide, segments: Segments, tables: FoldTables, scale: Tensor, backend: str
) -> Direction:
    """The columns of S."""
    return Direction(
        **cols._asdict(),
        segments=segments,
        scale=scale,
        columns=tables.images,
        backend=backend,
        with_positive=tables.texts_with_positive,
    )


def add_log(a: Tensor, b: Tensor) -> Tensor:
    """``log(exp(a) + exp(b))``; where both are -inf its gradient is 0, not NaN."""
    nothing = (a == -torch.inf) & (b == -torch.inf)
    joint = torch.logaddexp(a.masked_fill(nothing, 0), b.masked_fill(nothing, 0))
    return joint.masked_fill(nothing, -torch.inf)
