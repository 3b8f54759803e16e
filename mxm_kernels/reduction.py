"""From the losses of the rows to the result: soft share, row weights, directions, reduction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from mxm_kernels.batch import Batch, directions
from mxm_kernels.direction import Direction
from mxm_kernels.losses import soft_rows
from mxm_kernels.options import row_vector

# (direction, what the direction is given, label smoothing) -> losses of the rows (rows,). What
# it is given are the weights (P,) of the positives, for most.
Formula = Callable[[Direction, Any, float], Tensor]
Given = tuple[Any, Any]


@dataclass(frozen=True, eq=False)
class _Side:
    """One direction and all that its mean depends on."""

    direction: Direction
    losses: Tensor | None  # (rows,) of the formula; None: the soft loss alone
    soft: Tensor | None  # (rows,) of the soft loss, where it has a share
    share: float | Tensor  # of the soft loss
    weights: Tensor | None  # (rows,) of the rows
    every_row: bool  # the formula's mean is over all rows, not those with a positive

    def rows(self) -> Tensor:
        """Losses of the rows, each times its weight."""
        losses = self.losses
        if losses is None:
            assert self.soft is not None
            losses = self.soft
        elif self.soft is not None:
            losses = (1 - self.share) * losses + self.share * self.soft
        return losses if self.weights is None else self.weights * losses

    def mean(self) -> Tensor:
        """Mean of the formula over the rows with a positive plus mean of the soft loss."""
        rows, share = self.direction.n.shape[0], self.share
        if self.losses is None:
            assert self.soft is not None
            return _average(self.soft, rows, self.weights)
        count = rows if self.every_row else self.direction.with_positive
        weights = self.weights
        if weights is not None and not self.every_row:
            weights = weights * self.direction.has_positive
        if self.soft is None:
            return _average(self.losses, count, weights)
        if isinstance(share, Tensor):
            hard = _average((1 - share) * self.losses, count, weights)
            return hard + _average(share * self.soft, rows, self.weights)
        hard = (1 - share) * _average(self.losses, count, weights)
        return hard + share * _average(self.soft, rows, self.weights)


def reduce(
    batch: Batch, formula: Formula | None, given: Given, *, every_row: bool = False
) -> Tensor:
    """Run the operator, the formula in both directions, and mix them.

    ``given`` is what the formula is given in each direction; without a formula the loss is the
    soft loss alone.
    """
    o = batch.options
    soft = formula is None or o.soft
    pair = directions(batch, soft=soft)
    if o.diagnostics is not None:
        o.diagnostics.measure(*pair)
    wanted = (True, True) if o.reduction == "none" else _wanted(o.image_to_text_weight)
    weights = (
        nonnegative_weights("image_weights", o.image_weights, batch.x, batch.dtype),
        nonnegative_weights("text_weights", o.text_weights, batch.y, batch.dtype),
    )
    shares = _soft_shares(batch)
    sides = [
        _Side(
            direction=d,
            losses=None if formula is None else formula(d, given[k], o.label_smoothing),
            soft=soft_rows(d) if soft else None,
            share=shares[k],
            weights=weights[k],
            every_row=every_row,
        )
        for k, d in enumerate(pair)
        if wanted[k]
    ]
    if o.reduction == "none":
        return cast(Tensor, tuple(side.rows() for side in sides))  # iterates as a Tensor does
    if len(sides) == 1:
        return sides[0].mean()
    forward, backward = (side.mean() for side in sides)
    share = o.image_to_text_weight
    return (forward + backward) / 2 if share == 0.5 else share * forward + (1 - share) * backward


def _wanted(image_to_text_weight: float) -> tuple[bool, bool]:
    return image_to_text_weight > 0, image_to_text_weight < 1


def _average(losses: Tensor, count: int, row_weights: Tensor | None) -> Tensor:
    if row_weights is None:
        return losses.sum() / count
    return (row_weights * losses).sum() / row_weights.sum()


def _soft_shares(batch: Batch) -> tuple[float | Tensor, float | Tensor]:
    """The share of the soft loss in each direction: a number or one for each row."""
    share = batch.options.soft_weight
    if not isinstance(share, tuple | list):
        return float(share), float(share)
    rows, cols = share
    return (
        _fractions("soft_weight[0]", rows, batch.x, batch.dtype),
        _fractions("soft_weight[1]", cols, batch.y, batch.dtype),
    )


def _fractions(name: str, value: object, like: Tensor, dtype: torch.dtype) -> Tensor:
    vector = row_vector(name, value, like.shape[0], like, dtype)
    if _can_look(vector) and not bool(((vector >= 0) & (vector <= 1)).all()):
        raise ValueError(f"{name} must be between 0 and 1")
    return vector


def nonnegative_weights(
    name: str, value: Tensor | None, like: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """Weights of the rows; on a GPU, where looking would wait, bad ones give NaN."""
    if value is None:
        return None
    vector = row_vector(name, value, like.shape[0], like, dtype)
    if not _can_look(vector):
        return torch.where(vector >= 0, vector, torch.nan)
    if not bool((vector >= 0).all()):
        raise ValueError(f"{name} must not be negative, got {float(vector.detach().min())}")
    return vector


def _can_look(vector: Tensor) -> bool:
    return vector.device.type == "cpu" and not torch.compiler.is_compiling()
