"""The arguments and results of what a backend computes from the list of rows.

The list is that of ``interface.py``: R = M + N rows, images first. Row r owns the positives
offsets[r] : offsets[r + 1] of the L in the list.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class FusedFormula(NamedTuple):
    """A loss of the positives of a row that a backend has in a kernel, and the soft loss."""

    name: str  # that of the core.formulas.Formula
    constant: float  # of the formula
    hard: float  # factor of the formula
    soft: float  # factor of the soft loss
    smoothing: float = 0.0  # label smoothing e of the formula

    def target_weights(self, rows: RowProblem) -> tuple[Tensor, float]:
        """(R,) weights of the soft losses and their factor, also where one is the formula."""
        if self.name == "soft":
            return rows.hard_weights, self.hard
        return rows.soft_weights, self.soft


class RowProblem(NamedTuple):
    """The list of rows, as a fused formula takes it."""

    neg_lse: Tensor  # (R,)
    positives: Tensor  # (L,) sorted by row
    teacher_mean: Tensor  # (R,), or empty where the soft loss has no factor
    parameter: Tensor  # () or (R,) of the formula, or empty where it has none
    neg_sum: Tensor  # (R,) sum of S over the negatives, or empty where nothing is smoothed
    pair_weights: Tensor  # (L,), or empty where the formula weighs no positive
    hard_weights: Tensor  # (R,) factors of each row's loss by the formula
    soft_weights: Tensor  # (R,) factors of each row's soft loss
    num_negatives: Tensor  # (R,), or empty where the formula does not read it
    offsets: Tensor  # (R + 1,) int64
    owners: Tensor  # (L,) int64

    def allocate(self) -> RowLosses:
        """Uninitialised losses and derivatives."""
        n, parameter = self.neg_lse, self.parameter
        return RowLosses(
            torch.empty_like(n),
            torch.empty_like(n),
            torch.empty_like(self.positives),
            n.new_empty(n.shape[0] if parameter.numel() else 0),  # not len: see Problem.allocate
            torch.empty_like(self.neg_sum),
        )

    def allocate_gradients(self) -> RowLosses:
        """Uninitialised results of backward: by u, n, S, the parameter and the negatives' sum."""
        read = self.teacher_mean, self.neg_lse, self.positives, self.parameter, self.neg_sum
        return RowLosses(*map(torch.empty_like, read))


class RowLosses(NamedTuple):
    """Losses of the rows, with their weights, and their derivatives."""

    losses: Tensor  # (R,)
    d_neg_lse: Tensor  # (R,)
    d_positives: Tensor  # (L,)
    d_parameter: Tensor  # (R,), or empty where the formula has no parameter
    d_neg_sum: Tensor  # (R,), or empty where nothing is smoothed


class RowSums(NamedTuple):
    """The sums of rows that a queue's columns are added to; without a teacher two are empty."""

    neg_lse: Tensor  # (rows,)
    teacher_mean: Tensor  # (rows,)
    teacher_lse: Tensor  # (rows,)


class QueuePlace(NamedTuple):
    """The rows of the list to which a queue adds negatives."""

    first: int  # row that sees it
    length: int  # how many do, which come first in the queue's own list


class DiagnosedRows(NamedTuple):
    """The list of rows, as the diagnostics take it."""

    neg_lse: Tensor  # (R,)
    positives: Tensor  # (L,) sorted by row
    hardest: Tensor  # (R,)
    entropy: Tensor | None  # (R,), None without a teacher
    scale: Tensor  # () or (R,)
    offsets: Tensor  # (R + 1,) int64
    images: int  # M: the first M rows are images


class Draw(NamedTuple):
    """The arguments of a draw; ``draws`` says which positives they draw, on every backend."""

    seed: Tensor  # () int64
    offsets: Tensor  # (R + 1,) int64
    rounds: int
    positives: int  # L, the last of the offsets
