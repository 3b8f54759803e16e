"""From the losses of the rows to the result: soft share, row weights, directions, reduction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from mxm_kernels.algebra.batch import Batch
from mxm_kernels.algebra.direction import Direction
from mxm_kernels.algebra.losses import form_of, row_losses, soft_rows
from mxm_kernels.algebra.plain import is_plain, plain_loss
from mxm_kernels.algebra.row_options import row_weights, soft_shares
from mxm_kernels.algebra.run import directions
from mxm_kernels.backends.problem import Form

# (direction, what the direction is given, label smoothing) -> losses of the rows (rows,). What
# it is given are the weights (P,) of the positives, for most.
Formula = Callable[[Direction, Any, float], Tensor]
Given = tuple[Any, Any]


@dataclass(frozen=True, eq=False)
class Side:
    """One direction's losses and all that their mean depends on."""

    losses: Tensor  # (rows,) of the formula, or of the soft loss alone
    count: int | None  # rows in the mean of the losses, of all ranks; None: already divided by it
    every: int  # rows of all ranks
    total: Callable[[Tensor], Tensor]  # sum over the ranks
    weights: Tensor | None = None  # (rows,) of the rows
    counted: Tensor | None = None  # (rows,) which rows are in the mean of the losses; None: all
    soft: Tensor | None = None  # (rows,) of the soft loss, where it has a share beside a formula
    share: float | Tensor = 0.0  # of the soft loss

    def rows(self) -> Tensor:
        """Losses of the rows, each times its weight."""
        losses = self.losses
        if self.soft is not None:
            losses = (1 - self.share) * losses + self.share * self.soft
        return losses if self.weights is None else self.weights * losses

    def mean(self) -> Tensor:
        """Mean of the losses over the rows that count, plus mean of the soft loss over all.

        This process's part of it: the sum over the ranks is the mean.
        """
        weights, rows = self.weights, self.every
        if weights is not None and self.counted is not None:
            weights = weights * self.counted
        if self.soft is None:
            return self._average(self.losses, self.count, weights)
        if isinstance(self.share, Tensor):
            hard = self._average((1 - self.share) * self.losses, self.count, weights)
            return hard + self._average(self.share * self.soft, rows, self.weights)
        hard = (1 - self.share) * self._average(self.losses, self.count, weights)
        return hard + self.share * self._average(self.soft, rows, self.weights)

    def _average(self, losses: Tensor, count: int | None, row_weights: Tensor | None) -> Tensor:
        if row_weights is None:
            total = losses.sum()
            return total if count is None else total / count
        return (row_weights * losses).sum() / self.total(row_weights.sum())


def reduce(
    batch: Batch, formula: Formula | None, given: Given, *, every_row: bool = False
) -> Tensor:
    """Run the operator, the formula in both directions, and mix them.

    ``given`` is what the formula is given in each direction; without a formula the loss is the
    soft loss alone, whose share is then 1.
    """
    o, form = batch.options, form_of(formula)
    if form is not None and is_plain(batch, given):
        return plain_loss(batch, given, form)
    pair = directions(batch, soft=o.soft)
    if o.diagnostics is not None:
        o.diagnostics.measure(*pair, batch.sum)
    shares = soft_shares(batch)

    def side(k: int) -> Side:
        d = pair[k]
        if form is not None and _in_one_call(batch, d, given[k], form):
            return _mixed_side(batch, k, d, given[k], form, shares[k])
        losses = soft_rows(d) if formula is None else formula(d, given[k], o.label_smoothing)
        everyone = every_row or formula is None
        counted = None if everyone else d.has_positive
        rows = batch.rows[k]
        return Side(
            losses=losses,
            count=rows if everyone else d.with_positive,
            every=rows,
            total=batch.sum,
            weights=row_weights(batch, k, losses, counted),
            counted=counted,
            soft=soft_rows(d) if formula is not None and o.soft else None,
            share=shares[k],
        )

    return mix(batch, side)


def _in_one_call(batch: Batch, d: Direction, weights: Tensor | None, form: Form) -> bool:
    """Whether the operator of the rows computes what the options ask for."""
    o = batch.options
    plain = not o.label_smoothing and o.image_weights is None and o.text_weights is None
    one_share = not isinstance(o.soft_weight, tuple | list)
    constant = weights is None or not weights.requires_grad
    if form.name == "debiased" and (d.scale.ndim or isinstance(d.columns, Tensor)):
        return False  # a scale or a number of negatives for each row
    return plain and one_share and constant and d.excluded is None


def _mixed_side(
    batch: Batch,
    k: int,
    d: Direction,
    weights: Tensor | None,
    form: Form,
    soft: float | Tensor,
) -> Side:
    """A form of the positives and the soft loss together; for a mean each row has its share."""
    assert not isinstance(soft, Tensor)
    mean = batch.options.reduction == "mean"
    counts = (max(d.with_positive, 1), batch.rows[k]) if mean else (1, 1)
    losses = row_losses(d, form, weights, hard=1 - soft, soft=soft, counts=counts)
    return Side(losses, count=None, every=batch.rows[k], total=batch.sum)


def mix(batch: Batch, side: Callable[[int], Side]) -> Tensor:
    """Both directions in one number, or the rows of each; ``side(k)`` makes direction k."""
    options = batch.options
    if options.reduction == "none":
        return cast(Tensor, (side(0).rows(), side(1).rows()))  # iterates as a Tensor does
    share = options.image_to_text_weight
    if share in (0, 1):
        return batch.sum(side(0 if share else 1).mean())
    forward, backward = side(0).mean(), side(1).mean()
    both = (forward + backward) / 2 if share == 0.5 else share * forward + (1 - share) * backward
    return batch.sum(both)
