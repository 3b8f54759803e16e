"""Run the operator for a batch: on this process or over the ranks, with scales of any kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from mxm_kernels.backends.interface import SigmoidStatistics
from mxm_kernels.core.arguments import Teacher
from mxm_kernels.core.batch import Batch
from mxm_kernels.core.filter import SLACK, fault_of, similarity_thresholds
from mxm_kernels.core.join_halves import join_halves
from mxm_kernels.distributed.all_gather import statistics_over_ranks
from mxm_kernels.ops.float8 import float8_teacher, largest_of
from mxm_kernels.ops.row_scales import scale_rows
from mxm_kernels.ops.statistics import statistics


class RowStatistics(NamedTuple):
    """The statistics of the rows of one run of the operator, and the thresholds of its filter."""

    neg_lse: Tensor
    positives: Tensor
    teacher_mean: Tensor
    neg_sum: Tensor
    excluded_lse: Tensor
    teacher_lse: Tensor
    hardest: Tensor
    entropy: Tensor
    num_negatives: Tensor
    thresholds: Tensor | None  # (R,) similarities of the teacher, where there is a filter


def run(
    b: Batch,
    x: Tensor,
    y: Tensor,
    teacher: Teacher | None,
    s: Tensor,
    t: Tensor | None,
    unit: Tensor | None = None,
) -> RowStatistics:
    """The operator, on this process or over the ranks.

    ``t`` is None where only the filter reads the teacher. ``unit`` (R,): the teacher's features
    carry scales, so that their products are similarities times it.
    """
    rules, shard = b.rules, b.shard
    thresholds = fault = None
    if teacher is not None:
        teacher, t, unit = _as_quantized(b, teacher, t, unit)
        if shard is not None and not shard.ring:
            teacher = teacher[0], shard.ranks.gather(teacher[1], shard.texts)
        if b.filters:
            unit = s.new_ones(()) if unit is None else unit
            thresholds = similarity_thresholds(b, *teacher, unit)
            fault = fault_of(b, *teacher, thresholds)
            rules = rules._replace(thresholds=(thresholds + SLACK) * unit)
    given = x, y, teacher, s, t
    asked = b.options.diagnostics is not None, b.options.label_smoothing != 0
    if shard is not None:
        made = statistics_over_ranks(shard, *given, b.backend, *asked, rules)
    else:
        made = statistics(*given, b.tables, b.backend, *asked, rules=rules)
    if fault is not None:
        made = made._replace(neg_lse=made.neg_lse + fault)
    named = [getattr(made, name) for name in RowStatistics._fields[:-1]]
    return RowStatistics(*[*named, thresholds])


def _as_quantized(
    b: Batch, teacher: Teacher, t: Tensor | None, unit: Tensor | None
) -> tuple[Teacher, Tensor | None, Tensor | None]:
    """Teacher features (M, D'), (N, D') and their scale () in the batch's ``teacher_dtype``.

    And the unit of their products, None for 1. Over ranks the factors of the rounding are those of
    all rows, so that one process has the same.
    """
    if b.options.teacher_dtype is None:
        return teacher, t, unit
    largest = largest_of(*teacher, b.dtype)
    if b.shard is not None:
        largest = b.shard.ranks.greatest(largest)
    before = largest.new_ones(()) if t is None else t
    teacher, after = float8_teacher(teacher, before, largest, b.backend)
    if b.filters:
        unit = before / after if unit is None else unit * before / after
    return teacher, None if t is None else after, unit


_Made = TypeVar("_Made", RowStatistics, SigmoidStatistics)
# (x, y, the teacher's features, the scale of S and of T, the unit of the teacher's products) ->
# what the operator gives.
RunSide = Callable[[Tensor, Tensor, Teacher | None, Tensor, Tensor | None], _Made]


def with_row_scales(b: Batch, teacher: Teacher | None, run_side: RunSide[_Made]) -> _Made:
    """Two runs; in each the features of one side carry its scales, and it gives their rows."""
    own = scale_rows((b.x, b.y), b.scales, teacher, b.teacher_scales, b.backend)
    of_images = of_texts = None
    units: list[Tensor | None] = [None, None]
    if teacher is not None and own.teacher is not None:
        of_images, of_texts = (own.teacher[0], teacher[1]), (teacher[0], own.teacher[1])
        if b.filters:
            units = [_unit(b, side) for side in (0, 1)]
    first = run_side(own.scaled[0], own.plain[1], of_images, own.one, units[0])
    second = run_side(own.plain[0], own.scaled[1], of_texts, own.one, units[1])
    return _joined(b, first, second)


def _unit(b: Batch, side: int) -> Tensor:
    """(R,) the teacher's scales of one side, 1 for the rows of the other."""
    sides = [b.x.new_ones(len(f), dtype=b.dtype) for f in (b.x, b.y)]
    sides[side] = b.teacher_scales[side].expand(len(sides[side]))
    return torch.cat(sides)


def _joined(b: Batch, first: _Made, second: _Made) -> _Made:
    """The images' rows of the first run and the texts' of the second."""
    every = type(first)._fields
    names = [name for name in every if (v := getattr(first, name)) is not None and len(v)]
    cuts = [b.image_positives if name == "positives" else len(b.x) for name in names]
    of_images, of_texts = ([getattr(made, name) for name in names] for made in (first, second))
    joined = dict(zip(names, join_halves(of_images, of_texts, cuts), strict=True))
    return type(first)(*[joined.get(name, getattr(first, name)) for name in every])


def run_batch(b: Batch, teacher: Teacher | None, *, has_soft: bool) -> RowStatistics:
    """The operator for the features of a batch; without ``has_soft`` the teacher only filters."""
    if b.one_scale:
        t = b.teacher_scales[0] if has_soft else None
        return run(b, b.x, b.y, teacher, b.scales[0], t)

    def run_side(
        x: Tensor, y: Tensor, taught: Teacher | None, one: Tensor, unit: Tensor | None
    ) -> RowStatistics:
        return run(b, x, y, taught, one, one if has_soft else None, unit)

    return with_row_scales(b, teacher, run_side)
