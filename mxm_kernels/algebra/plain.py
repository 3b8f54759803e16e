"""The losses of a batch that asks for no more than weighted means, from the features at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from mxm_kernels.algebra.batch import Batch
from mxm_kernels.algebra.float8 import as_read
from mxm_kernels.algebra.row_options import row_weights, soft_shares
from mxm_kernels.algebra.selection import Weights
from mxm_kernels.backends.problem import Form, Shares, Sides
from mxm_kernels.operators.mixed import mixed_loss
from mxm_kernels.operators.statistics import make_problem

_OF_EVERY_ROW = "none", "whole"


def is_one_mean(batch: Batch, weights: Iterable[Any]) -> bool:
    """Whether the loss is a mean over one matrix on one process, and no weight in it is learned.

    ``weights`` are what the rows do not weigh: of pairs, or shares; other values count for nothing.
    """
    o = batch.options
    constant = *weights, o.image_weights, o.text_weights
    return (
        batch.shard is None
        and batch.one_scale
        and batch.queues == (None, None)
        and o.reduction == "mean"
        and not any(isinstance(w, Tensor) and w.requires_grad for w in constant)
    )


def is_plain(batch: Batch, weights: Weights | tuple[None, ...]) -> bool:
    """Whether the options leave means over both directions, as ``mixed_loss`` computes them."""
    o = batch.options
    soft = o.soft_weight if isinstance(o.soft_weight, tuple | list) else ()
    return (
        0 < o.image_to_text_weight < 1
        and not o.label_smoothing
        and o.diagnostics is None
        and is_one_mean(batch, (*weights, *soft))
    )


def plain_loss(batch: Batch, given: Weights | tuple[None, None], form: Form) -> Tensor:
    """() mean over both directions of a form of the positives and the soft loss, mixed.

    A form that weighs no positive is given no weights. "none" and "whole" are means over all rows,
    the others over those with a positive.
    """
    b, t, o = batch, batch.tables, batch.options
    none = b.x.new_empty(0, dtype=b.dtype)
    if not o.soft:
        b = replace(b, teacher=None)
    counted = t.images_with_positive, t.texts_with_positive
    if form.name in _OF_EVERY_ROW:
        counted = t.images, t.texts
    counts = counted[0], t.images, counted[1], t.texts
    (rows, of_rows), (cols, of_cols) = (
        _side(b, k, form, counts[2 * k : 2 * k + 2]) for k in (0, 1)
    )
    teacher, teacher_scale = as_read(
        b, b.teacher, None if b.teacher is None else b.teacher_scales[0]
    )
    problem = make_problem(b.x, b.y, teacher, b.scales[0], teacher_scale, t)
    row_pairs, col_pairs = (none if w is None else w for w in given)
    tables = t.text_offsets, t.text_slots, t.slot_places
    weights = *(of_rows or (none, none)), *(of_cols or (none, none))
    sides = Sides(row_pairs, col_pairs, *tables, *weights)
    return mixed_loss(problem, sides, form, Shares(*rows, *cols), counts, b.backend)


def _side(
    b: Batch, k: int, form: Form, counts: tuple[int, ...]
) -> tuple[tuple[float, float], tuple[Tensor, Tensor] | None]:
    """Shares of the hard and the soft loss in the mean of a side; (rows,) weights of either.

    Of the rows that ``counts`` say, the mixed loss divides by their numbers.
    """
    o, t, soft = b.options, b.tables, soft_shares(b)[k]
    of_side = 1 - o.image_to_text_weight if k else o.image_to_text_weight
    own = None
    if isinstance(soft, Tensor):
        shares, own = (of_side, of_side), (1 - soft, soft)
    else:
        shares = of_side * (1 - soft), of_side * soft
    if (o.image_weights, o.text_weights)[k] is None:
        return shares, own
    counted = None
    if form.name not in _OF_EVERY_ROW:
        counted = (t.image_offsets, t.text_offsets)[k].diff() > 0
    weights = row_weights(b, k, b.x.new_empty(b.rows[k], dtype=b.dtype), counted)
    assert weights is not None
    hard, of_soft = _means(weights, counted, counts)
    return shares, (hard, of_soft) if own is None else (own[0] * hard, own[1] * of_soft)


def _means(
    weights: Tensor, counted: Tensor | None, counts: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """(rows,) weights of which the mean over all rows is 1, or that over those that count."""
    total = weights.sum()
    of_counted = total if counted is None else (weights * counted).sum()
    # Not by counts over the sum, which weights of 1e-39 make infinite.
    return weights / of_counted * counts[0], weights / total * counts[1]
