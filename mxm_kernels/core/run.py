"""Run the operator for a batch: on this process or over the ranks, with scales of any kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from mxm_kernels.backends.interface import SigmoidStatistics, Statistics
from mxm_kernels.core.arguments import Teacher
from mxm_kernels.core.batch import Batch
from mxm_kernels.distributed.all_gather import statistics_over_ranks
from mxm_kernels.ops.float8 import float8_teacher, largest_of
from mxm_kernels.ops.row_sums import with_row_sums
from mxm_kernels.ops.statistics import statistics


def run(
    b: Batch, x: Tensor, y: Tensor, teacher: Teacher | None, s: Tensor, t: Tensor
) -> tuple[Statistics, Tensor | None]:
    """The operator, on this process or over the ranks.

    And (R,) the sums of S over whole rows, where label smoothing reads them.
    """
    row_sum = None
    if b.options.label_smoothing:
        add_up = None if b.shard is None else b.shard.ranks.sum
        x, y, s, row_sum = with_row_sums(x, y, s, b.backend, add_up)
    return _run(b, x, y, teacher, s, t), row_sum


def _run(
    b: Batch, x: Tensor, y: Tensor, teacher: Teacher | None, s: Tensor, t: Tensor
) -> Statistics:
    teacher, t = _as_quantized(b, teacher, t)
    teacher_scale = None if teacher is None else t
    diagnostics = b.options.diagnostics is not None
    if b.shard is not None:
        return statistics_over_ranks(
            b.shard, x, y, teacher, s, teacher_scale, b.backend, diagnostics
        )
    return statistics(x, y, teacher, s, teacher_scale, b.tables, b.backend, diagnostics)


def _as_quantized(b: Batch, teacher: Teacher | None, t: Tensor) -> tuple[Teacher | None, Tensor]:
    """Teacher features (M, D'), (N, D') and their scale () in the batch's ``teacher_dtype``.

    Over ranks the factors of the rounding are those of all rows, so that one process has the same.
    """
    if teacher is None or b.options.teacher_dtype is None:
        return teacher, t
    largest = largest_of(*teacher, b.dtype)
    if b.shard is not None:
        largest = b.shard.ranks.greatest(largest)
    return float8_teacher(teacher, t, largest, b.backend)


def scaled(features: Tensor, scale: Tensor) -> Tensor:
    """Features (rows, D) times their scale, (rows,) or (), in its dtype, rounded once."""
    rows = scale.expand(features.shape[0])[:, None]
    return (features.to(scale.dtype) * rows).to(features.dtype)


_Made = TypeVar("_Made", Statistics, SigmoidStatistics)


def with_row_scales(b: Batch, run_side: Callable[[int, Tensor, Tensor], _Made]) -> _Made:
    """Two runs; in each the features of one side carry its scales, and it gives their rows.

    ``run_side`` takes the side (0 or 1), x (M, D) and y (N, D), for a scale of 1.
    """
    first = run_side(0, scaled(b.x, b.scales[0]), b.y)
    second = run_side(1, b.x, scaled(b.y, b.scales[1]))
    images, pairs = len(b.x), b.image_positives

    def join(name: str) -> Tensor:
        a, z = getattr(first, name), getattr(second, name)
        if name == "kept" or not len(a):  # of no row
            return a
        cut = pairs if name == "positives" else images
        return torch.cat([a[:cut], z[cut:]])

    return first._replace(**{name: join(name) for name in first._fields})


def run_batch(b: Batch, teacher: Teacher | None) -> tuple[Statistics, Tensor, Tensor | None]:
    """The operator for the features of a batch, and the scale of its rows, () or (R,).

    And (R,) the sums of S over whole rows, where label smoothing reads them.
    """
    if b.one_scale:
        made, row_sum = run(b, b.x, b.y, teacher, b.scales[0], b.teacher_scales[0])
        return made, b.scales[0], row_sum
    one = b.x.new_ones((), dtype=b.dtype)
    sums = []

    def run_side(side: int, x: Tensor, y: Tensor) -> Statistics:
        given = teacher
        if given is not None:
            own = scaled(given[side], b.teacher_scales[side])
            given = (given[0], own) if side else (own, given[1])
        made, row_sum = run(b, x, y, given, one, one)
        sums.append(row_sum)
        return made

    made = with_row_scales(b, run_side)
    of_images, of_texts = sums
    if of_images is not None and of_texts is not None:
        of_images = torch.cat([of_images[: len(b.x)], of_texts[len(b.x) :]])
    return made, torch.cat(b.scales), of_images
