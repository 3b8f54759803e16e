"""From the losses of the rows to the result: one weighted sum over the list, or its halves.

The loss is l times the mean over the image rows plus (1 - l) times the mean over the text rows,
l = ``image_to_text_weight``. Each mean is weighted by the rows' weights v, over the rows that
count (c = 1):

    mean_i = sum_i v_i c_i loss_i / sum_i v_i c_i

so a row's loss has one factor, made here, and the loss is the sum over the list. A row with
factor 0 takes part with 0 times its loss: what is not finite shows, in the loss and in every
gradient (:func:`nan_everywhere`).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from mxm_kernels import checks
from mxm_kernels.core.batch import Batch
from mxm_kernels.core.symbols import as_operand, is_symbol
from mxm_kernels.folds.tables import FoldTables, kept_with_tables


def row_factors(batch: Batch, *, of_every_row: bool) -> Tensor:
    """(R,) factors of the losses of this process's rows.

    For ``reduction="none"`` they are the rows' weights alone. Otherwise the sum over all ranks of
    factors times losses is the loss. ``of_every_row``: rows without a positive count.
    """
    o, tables, dtype = batch.options, batch.tables, batch.dtype
    if o.reduction == "none":
        factors = batch.local_rows(_ones(tables, dtype))
    else:
        factors = batch.local_rows(
            _plain_factors(tables, o.image_to_text_weight, of_every_row, dtype)
        )
    if all(weights is None for weights in batch.row_weights):
        return factors
    halves = list(batch.halves(factors))
    for side, weights in enumerate(batch.row_weights):
        if weights is not None and o.reduction == "none":
            halves[side] = weights
        elif weights is not None:
            halves[side] = _weighted(batch, side, weights, halves[side])
    return torch.cat(halves)


@kept_with_tables
def _ones(tables: FoldTables, dtype: torch.dtype) -> Tensor:
    return torch.ones(tables.images + tables.texts, dtype=dtype, device=tables.device)


@kept_with_tables
def zero(tables: FoldTables, dtype: torch.dtype) -> Tensor:
    """() 0, for one launch where a sum has a product or a quotient."""
    return torch.zeros((), dtype=dtype, device=tables.device)


@kept_with_tables
def _plain_factors(
    tables: FoldTables, share: float, of_every_row: bool, dtype: torch.dtype
) -> Tensor:
    """(M + N,) of all ranks, for rows that weigh the same."""
    images, texts = tables.images, tables.texts
    numbers = images, texts
    if not of_every_row:
        numbers = tables.images_with_positive, tables.texts_with_positive
    factors = torch.empty(images + texts, dtype=dtype, device=tables.device)
    factors[:images] = as_operand(share, factors) / max(numbers[0], 1)
    factors[images:] = as_operand(1 - share, factors) / max(numbers[1], 1)
    if numbers != (images, texts):
        factors = factors * (tables.offsets.diff() > 0)
    return factors


def _weighted(batch: Batch, side: int, weights: Tensor, plain: Tensor) -> Tensor:
    """(rows,) factors of one side by its weights; ``plain`` are 0 where a row does not count."""
    share = (batch.options.image_to_text_weight, 1 - batch.options.image_to_text_weight)[side]
    if not share:
        return weights * 0
    counted = weights * (plain > 0) if batch.has_unpaired_rows else weights
    total = batch.sum(counted.sum())  # over ranks the same on all, which all raise or none
    if checks.can_look(total) and not float(total.detach()) > 0:
        name = ("image_weights", "text_weights")[side]
        raise ValueError(
            f"{name}: expected a positive weight for a row that counts in the mean, got none"
        )
    if is_symbol(share):
        return counted * share / total
    return torch.addcdiv(zero(batch.tables, batch.dtype), counted, total, value=share)


def reduced(batch: Batch, losses: Tensor) -> Tensor:
    """The result from the losses (R,) with their factors: their sum, or the halves of the list."""
    if batch.options.reduction != "none":
        return nan_everywhere(batch, batch.sum(losses.sum()))
    return cast(Tensor, batch.halves(nan_everywhere(batch, losses)))  # iterates as one does


def nan_everywhere(batch: Batch, result: Tensor) -> Tensor:
    """() or (R,) the same; where a number of it, of any rank, is not finite, everything is NaN.

    Everything is the list and, through its gradient, every gradient of the call: a scaler of
    gradients skips a step only if one that it looks at is not finite. A sum, (), is on all ranks
    already, and not finite itself.
    """
    total = result.detach()
    if result.ndim and batch.shard is None:
        total = torch.linalg.vector_norm(total, torch.inf)  # a sum might overflow
    elif result.ndim:  # a rank may have no row
        total = batch.sum((total * 0).sum())
    return cast(Tensor, _NanEverywhere.apply(result, total, zero(batch.tables, batch.dtype)))


class _NanEverywhere(torch.autograd.Function):
    """Adds 0 times ``total`` to a list and to its gradient, in one launch each."""

    @staticmethod
    def forward(ctx, result, total, nothing):
        ctx.save_for_backward(total, nothing)
        return torch.addcmul(result, nothing, total) if result.ndim else result.view_as(result)

    @staticmethod
    def backward(ctx, grad):
        total, nothing = ctx.saved_tensors
        return torch.addcmul(grad, nothing, total), None, None
