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
from mxm_kernels.ops.statistics import statistics


def run(
    b: Batch, x: Tensor, y: Tensor, teacher: Teacher | None, s: Tensor, t: Tensor
) -> Statistics:
    """The operator, on this process or over the ranks."""
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


def run_batch(b: Batch, teacher: Teacher | None) -> tuple[Statistics, Tensor]:
    """The operator for the features of a batch, and the scale of its rows, () or (R,)."""
    if b.one_scale:
        return run(b, b.x, b.y, teacher, b.scales[0], b.teacher_scales[0]), b.scales[0]
    one = b.x.new_ones((), dtype=b.dtype)

    def run_side(side: int, x: Tensor, y: Tensor) -> Statistics:
        if teacher is None:
            return run(b, x, y, None, one, one)
        own = scaled(teacher[side], b.teacher_scales[side])
        return run(b, x, y, (teacher[0], own) if side else (own, teacher[1]), one, one)

    return with_row_scales(b, run_side), torch.cat(b.scales)
