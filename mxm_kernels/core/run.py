"""Run the operator for a batch: on this process or over the ranks, with scales of any kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from torch import Tensor

from mxm_kernels.backends.interface import SigmoidStatistics
from mxm_kernels.core.arguments import Teacher
from mxm_kernels.core.batch import Batch
from mxm_kernels.core.join_halves import join_halves
from mxm_kernels.distributed.all_gather import statistics_over_ranks
from mxm_kernels.ops.float8 import float8_teacher, largest_of
from mxm_kernels.ops.row_scales import scale_rows
from mxm_kernels.ops.statistics import statistics


class RowStatistics(NamedTuple):
    """The statistics of the rows of one run of the operator: the first fields of ``Statistics``."""

    neg_lse: Tensor
    positives: Tensor
    teacher_mean: Tensor
    neg_sum: Tensor
    teacher_lse: Tensor
    hardest: Tensor
    entropy: Tensor


def run(
    b: Batch, x: Tensor, y: Tensor, teacher: Teacher | None, s: Tensor, t: Tensor
) -> RowStatistics:
    """The operator, on this process or over the ranks."""
    teacher, t = _as_quantized(b, teacher, t)
    given = x, y, teacher, s, None if teacher is None else t
    asked = b.options.diagnostics is not None, b.options.label_smoothing != 0
    if b.shard is not None:
        made = statistics_over_ranks(b.shard, *given, b.backend, *asked)
    else:
        made = statistics(*given, b.tables, b.backend, *asked)
    return RowStatistics(*[getattr(made, name) for name in RowStatistics._fields])


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


_Made = TypeVar("_Made", RowStatistics, SigmoidStatistics)
# (x, y, the teacher's features, the scale of S and of T) -> what the operator gives.
RunSide = Callable[[Tensor, Tensor, Teacher | None, Tensor], _Made]


def with_row_scales(b: Batch, teacher: Teacher | None, run_side: RunSide[_Made]) -> _Made:
    """Two runs; in each the features of one side carry its scales, and it gives their rows."""
    own = scale_rows((b.x, b.y), b.scales, teacher, b.teacher_scales, b.backend)
    of_images = of_texts = None
    if teacher is not None and own.teacher is not None:
        of_images, of_texts = (own.teacher[0], teacher[1]), (teacher[0], own.teacher[1])
    first = run_side(own.scaled[0], own.plain[1], of_images, own.one)
    second = run_side(own.plain[0], own.scaled[1], of_texts, own.one)
    return _joined(b, first, second)


def _joined(b: Batch, first: _Made, second: _Made) -> _Made:
    """The images' rows of the first run and the texts' of the second."""
    every = type(first)._fields
    names = [name for name in every if (v := getattr(first, name)) is not None and len(v)]
    cuts = [b.image_positives if name == "positives" else len(b.x) for name in names]
    of_images, of_texts = ([getattr(made, name) for name in names] for made in (first, second))
    joined = dict(zip(names, join_halves(of_images, of_texts, cuts), strict=True))
    return type(first)(*[joined.get(name, getattr(first, name)) for name in every])


def run_batch(b: Batch, teacher: Teacher | None) -> RowStatistics:
    """The operator for the features of a batch."""
    if b.one_scale:
        return run(b, b.x, b.y, teacher, b.scales[0], b.teacher_scales[0])
    return with_row_scales(b, teacher, lambda x, y, taught, one: run(b, x, y, taught, one, one))
