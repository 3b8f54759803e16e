"""What a loss is told of its pairs, dense, in float64: offsets, and which pairs are no negatives.

Every function takes one direction. S and ``similarities`` (the teacher's, without a scale) are
matrices (rows, columns), ``positives`` a boolean one. What is removed is a boolean matrix too.
Positives may be in it: they stay positives, and only negatives are taken out.
Written to be read; shares no code with mxm_kernels.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

SLACK = 1e-4  # so that an exact duplicate of a positive is no matter of rounding


def with_offsets(S: Tensor, of_rows: Tensor, of_columns: Tensor) -> Tensor:
    """S_ij + b_i + b'_j: log-Q correction, prior-adjusted logits, centring."""
    return S + rearrange(of_rows, "row -> row 1") + rearrange(of_columns, "column -> 1 column")


def excluded(of_rows: Tensor, of_columns: Tensor) -> Tensor:
    """Pairs with the same id, unless it is negative: no negatives of each other."""
    rows, columns = rearrange(of_rows, "row -> row 1"), rearrange(of_columns, "column -> 1 column")
    return (rows == columns) & (rows >= 0)


def outside(of_rows: Tensor, of_columns: Tensor) -> Tensor:
    """Pairs with two different ids, none of them negative: negatives only within an id."""
    rows, columns = rearrange(of_rows, "row -> row 1"), rearrange(of_columns, "column -> 1 column")
    return (rows != columns) & (rows >= 0) & (columns >= 0)


def thresholds(similarities: Tensor, positives: Tensor, margin: float, strategy: str) -> Tensor:
    """(rows,) the mean similarity of a row's positives less a margin; infinity without one.

    With one positive these are GISTEmbed's (arXiv 2402.16829).
    """
    made = []
    for row, own in zip(similarities, positives, strict=True):
        mean = row[own].mean()
        less = mean.abs() * margin if strategy == "relative" else margin
        made.append(mean - less if own.any() else mean.new_tensor(torch.inf))
    return torch.stack(made) if made else similarities.new_zeros(0)


def above(similarities: Tensor, of_rows: Tensor) -> Tensor:
    """Pairs that the teacher finds more similar than their row's threshold."""
    return similarities > rearrange(of_rows, "row -> row 1") + SLACK
