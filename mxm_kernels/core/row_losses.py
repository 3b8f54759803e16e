"""From the list of rows to the loss: a formula and the soft loss, mixed and summed.

A formula is PyTorch over the list. Where a backend has the formula in a kernel, and the kernel
reads every field that the list has, the kernel computes it instead (:func:`_can_fuse`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import cast

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.row_interface import FusedFormula, RowProblem
from mxm_kernels.core import formulas
from mxm_kernels.core.batch import Batch
from mxm_kernels.core.formulas import Formula
from mxm_kernels.core.make_rows import rows_of
from mxm_kernels.core.mean import reduced, row_factors
from mxm_kernels.core.rows import Rows
from mxm_kernels.core.symbols import is_symbol
from mxm_kernels.ops.row_losses import row_losses as fused_row_losses

AnyFormula = Formula | Callable[[Rows, Tensor | None], Tensor]


def loss_of(batch: Batch, formula: AnyFormula | None, pair_weights: Tensor | None = None) -> Tensor:
    """The loss of a batch: run the operator, then a formula, and mix in the soft loss.

    ``pair_weights`` (L,) are the weights of the positives of this process's rows. Without a formula
    the loss is the soft loss alone, whose share is then 1.
    """
    rows = rows_of(batch, reads_teacher=batch.has_soft)
    if batch.options.diagnostics is not None:
        batch.options.diagnostics.measure(rows)
    return _mixed(rows, formula, pair_weights)


def _mixed(rows: Rows, formula: AnyFormula | None, pair_weights: Tensor | None) -> Tensor:
    """The loss of a list of rows, as :func:`loss_of`."""
    batch = rows.batch
    of_every_row = getattr(formula, "of_every_row", False)
    hard_factors = row_factors(batch, of_every_row=of_every_row)
    soft_factors = hard_factors
    if batch.has_soft and not of_every_row and batch.has_unpaired_rows:
        soft_factors = row_factors(batch, of_every_row=True)
    hard = soft = 1.0
    if batch.soft_weights is not None:
        shares = torch.cat(batch.soft_weights)
        hard_factors = torch.addcmul(hard_factors, hard_factors, shares, value=-1)
        soft_factors = soft_factors * shares
    elif batch.has_soft:
        soft = cast(float, batch.options.soft_weight)
        hard = 1 - soft
    else:  # written out: a symbol that is 0 here stays a symbol
        soft = 0.0
    if is_symbol(soft):
        hard_factors, soft_factors = hard_factors * hard, soft_factors * soft
        hard = soft = 1.0
    if formula is None:
        formula, hard_factors, hard, soft = formulas.soft, soft_factors, soft, 0.0
    weights = pair_weights, hard_factors, hard, soft_factors, soft
    if batch.shard is not None or not _can_fuse(
        rows, formula, pair_weights, hard_factors, soft_factors
    ):
        return reduced(batch, row_losses(rows, formula, *weights))
    fused = _fused(rows, cast(Formula, formula), *weights)
    if batch.options.reduction == "mean":
        return fused_row_losses(*fused, batch.backend, "sum")
    return cast(Tensor, batch.halves(fused_row_losses(*fused, batch.backend, "checked rows")))


def row_losses(
    rows: Rows,
    formula: AnyFormula,
    pair_weights: Tensor | None,
    hard_factors: Tensor,
    hard: float,
    soft_factors: Tensor,
    soft: float,
) -> Tensor:
    """(R,) formula's losses x hard x ``hard_factors`` + soft losses x soft x ``soft_factors``."""
    if _can_fuse(rows, formula, pair_weights, hard_factors, soft_factors):
        weights = pair_weights, hard_factors, hard, soft_factors, soft
        fused = _fused(rows, cast(Formula, formula), *weights)
        return fused_row_losses(*fused, rows.batch.backend)
    if isinstance(formula, Formula):  # torch 2.8 cannot trace a call of an object made inside
        losses = Formula.__call__(formula, rows, pair_weights)
    else:
        losses = formula(rows, pair_weights)
    if rows.batch.has_unpaired_rows:
        # The formula may not read n of a row without a positive; NaN there has to show.
        unread = rows.neg_lse.masked_fill(rows.has_positive | ~rows.has_negative, 0)
        losses = torch.add(losses, unread, alpha=0)
    losses = losses * (hard_factors if hard == 1 else hard_factors * hard)
    if soft:
        losses = torch.addcmul(losses, formulas.soft(rows, None), soft_factors, value=soft)
    return losses


# The fields of the list that the fused formulas read, that are added to them, or that none reads.
READ = (
    "neg_lse",
    "positives",
    "teacher_mean",
    "segments",
    "counted_negatives",
    "queued_negatives",
    "neg_sum",
    "label_smoothing",
    "batch",
    "teacher_lse",
    "hardest",
    "entropy",
)


def _can_fuse(
    rows: Rows,
    formula: AnyFormula,
    pair_weights: Tensor | None,
    *factors: Tensor,
) -> bool:
    """Whether the backend's kernel computes this formula of this list.

    It does where no field of the list is set that it does not read, and where nothing wants a
    gradient beside n, S, u and the formula's parameter. A kernel takes numbers, no symbols.
    """
    if not isinstance(formula, Formula) or not backends.fuses(rows.batch.backend, formula.name):
        return False
    if is_symbol(rows.label_smoothing) or is_symbol(formula.constant or 0.0):
        return False
    learned = [v for v in (pair_weights, *factors) if v is not None and v.requires_grad]
    others = [f for f in fields(rows) if f.name not in READ]
    unread = [f.name for f in others if not _is_unset(getattr(rows, f.name), f.default)]
    return not learned and not unread


def _is_unset(value: object, default: object) -> bool:
    return value is default or (not isinstance(value, Tensor) and value == default)


def _fused(
    rows: Rows,
    formula: Formula,
    pair_weights: Tensor | None,
    hard_factors: Tensor,
    hard: float,
    soft_factors: Tensor,
    soft: float,
) -> tuple[RowProblem, FusedFormula]:
    """The arguments of the backend's kernel."""
    nothing = rows.neg_lse.new_empty(0)
    smoothed = formula.smoothing is not None and rows.neg_sum is not None
    problem = RowProblem(
        rows.neg_lse,
        rows.positives,
        nothing if rows.teacher_mean is None else rows.teacher_mean,
        nothing if formula.parameter is None else getattr(rows, formula.parameter),
        cast(Tensor, rows.neg_sum) if smoothed else nothing,
        pair_weights if pair_weights is not None and formula.weighs else nothing,
        hard_factors,
        soft_factors,
        rows.num_negatives if formula.reads_negatives or smoothed else nothing,
        *rows.segments,
    )
    return problem, FusedFormula(
        formula.name, formula.constant or 0.0, hard, soft, rows.label_smoothing
    )
