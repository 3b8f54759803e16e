"""The losses of a batch that asks for nothing else, from the features at once."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mxm_kernels.algebra.batch import Batch
from mxm_kernels.algebra.float8 import as_read
from mxm_kernels.algebra.selection import Weights
from mxm_kernels.backends.problem import Form, Shares, Sides
from mxm_kernels.operators.mixed import mixed_loss
from mxm_kernels.operators.statistics import make_problem


def is_plain(batch: Batch, weights: Weights | tuple[None, None]) -> bool:
    """Whether the options leave the mean of both directions, from one matrix on one process."""
    o = batch.options
    absent = o.image_weights, o.text_weights, o.image_queue, o.text_queue, o.diagnostics
    return (
        batch.shard is None
        and batch.one_scale
        and o.reduction == "mean"
        and 0 < o.image_to_text_weight < 1
        and not o.label_smoothing
        and not isinstance(o.soft_weight, tuple | list)
        and all(option is None for option in absent)
        and not any(w is not None and w.requires_grad for w in weights)
    )


def plain_loss(batch: Batch, given: Weights | tuple[None, None], form: Form) -> Tensor:
    """() mean over both directions of a form of the positives and the soft loss, mixed.

    A form that weighs no positive is given no weights.
    """
    b, t, soft = batch, batch.tables, batch.options.soft_weight
    assert not isinstance(soft, tuple)
    weights = (b.x.new_empty(0, dtype=b.dtype) if w is None else w for w in given)
    row_weights, col_weights = weights
    if not soft:
        b = replace(b, teacher=None)
    rows = b.options.image_to_text_weight
    cols = 1 - rows
    shares = Shares(rows * (1 - soft), rows * soft, cols * (1 - soft), cols * soft)
    # Without folds no row has a positive, and the form no share.
    counts = max(t.images_with_positive, 1), t.images, max(t.texts_with_positive, 1), t.texts
    teacher, teacher_scale = as_read(
        b, b.teacher, None if b.teacher is None else b.teacher_scales[0]
    )
    problem = make_problem(b.x, b.y, teacher, b.scales[0], teacher_scale, t)
    sides = Sides(row_weights, col_weights, t.text_offsets, t.text_slots, t.slot_places)
    return mixed_loss(problem, sides, form, shares, counts, b.backend)
