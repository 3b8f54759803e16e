"""What a launch gives, held to float64: all of a small batch, or sampled rows of a large one.

The reference is the ``blocked`` backend on widened features. An error is ||got - expected|| /
||expected||; it may be 1e-5, or one unit of a 16-bit dtype's precision for the gradients, which are
rounded to it twice. The error of u (``teacher_mean``) is relative to n (``neg_lse``). u is an
average of many S of either sign, so it may be far smaller than its terms, and the loss subtracts
it from a log-sum-exp.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mxm_kernels.backends import load
from mxm_kernels.backends.interface import Needs, Statistics
from mxm_kernels.folds.tables import PairTables
from mxm_kernels.tuning.workload import Workload, widened

STATISTIC_BOUND = 1e-5
SAMPLE = 64  # rows, and columns
EVERYTHING = Needs(x=True, y=True, scale=True, bias=True)
_PAIRED = ("x", "y"), ("teacher_x", "teacher_y"), ("image_groups", "text_groups")
# Vectors of the list of rows, images first, and of the positives, which are listed twice.
_OF_ROWS = (
    *("neg_lse", "teacher_mean", "teacher_lse", "hardest", "entropy", "neg_mean", "softplus_sum"),
)
UNCHECKED = "kept", "units", "neg_mean"  # whose reader is held to float64
_POSITIVES = "positives"


def expected(w: Workload) -> Any:
    """The results of the phase in float64, of nothing that was kept in less."""
    saved = w.saved
    if isinstance(saved, Statistics):
        saved = saved._replace(kept=saved.kept[:0], units=saved.units[:0])
    wide = replace(
        w,
        problem=widened(w.problem),
        bias=w.bias.double(),
        saved=widened(saved),
        upstream=widened(w.upstream),
    )
    return wide.run(load("blocked"), EVERYTHING)


def wrong(w: Workload, got: Any, wanted: Any) -> str | None:
    """A sentence on the first result that is less exact than its dtype allows; None: no such."""
    gradient = "gradient" in w.cell.phase
    for name, result, exact in zip(wanted._fields, got, wanted, strict=True):
        if not isinstance(exact, Tensor) or not exact.numel() or name in UNCHECKED:
            continue
        rounded = gradient and name in ("x", "y") and w.cell.dtype != torch.float32
        bound = torch.finfo(w.cell.dtype).eps if rounded else STATISTIC_BOUND
        beside = wanted.neg_lse if name == "teacher_mean" else exact
        error = _error(result, exact, float(max(exact.norm(), beside.norm())))
        if not error <= bound:
            return f"{name} is off by {error:.2g}, allowed {bound:.2g}"
    return None


def _error(got: Tensor, exact: Tensor, size: float) -> float:
    if got.shape != exact.shape or not bool(torch.isfinite(got).all()):
        return float("inf")
    return float((got.double() - exact).norm()) / size


class Sample:
    """Sampled images and texts of a batch with one positive in each row, and their float64."""

    def __init__(self, w: Workload) -> None:
        self.images = self._exact(w)
        self.texts = self._exact(_swapped(w))

    @staticmethod
    def _exact(w: Workload) -> tuple[Tensor, Workload, Any]:
        generator = torch.Generator().manual_seed(2)
        images = torch.randperm(len(w.problem.x), generator=generator)[:SAMPLE]
        images = images.to(w.problem.x.device)
        part = _part(w, images)
        return images, part, expected(part)

    def wrong(self, got: Any) -> str | None:
        """The same as the function ``wrong``, for results of the whole batch."""
        for side, results in (("images", got), ("texts", _swap(got))):
            images, part, exact = getattr(self, side)
            found = _of_images(_taken(results, images), len(images))
            fault = wrong(part, found, _of_images(exact, len(images)))
            if fault is not None:
                return f"{side} of a sample: {fault}"
        return None


def _of_images(numbers: Any, images: int) -> Any:
    """What is known of a batch from its first ``images``, without the texts and total sums."""
    kept = {
        name: value if name in ("x", _POSITIVES) else value[: images if name in _OF_ROWS else 0]
        for name, value in numbers._asdict().items()
        if value.ndim
    }
    nothing = {name: v.new_empty(0) for name, v in numbers._asdict().items() if not v.ndim}
    return numbers._replace(**kept, **nothing)


def _taken(numbers: Any, images: Tensor) -> Any:
    """What belongs to some images and to all texts, and the positives of these images."""
    taken = {}
    for name, value in numbers._asdict().items():
        half = len(value) // 2 if value.ndim else 0
        if name == "x":
            taken[name] = value[images]
        elif half and name in _OF_ROWS:
            taken[name] = torch.cat([value[images], value[half:]])
        elif half and name == _POSITIVES:
            # A text's place in text-major order is its number, since each has one positive.
            taken[name] = torch.cat([value[images], value[half + images.sort().values]])
    return numbers._replace(**taken)


def _part(w: Workload, images: Tensor) -> Workload:
    """Some images against all texts."""
    p, first = w.problem, torch.arange(len(images) + 1, device=images.device)
    tables = PairTables.of_slots(p.image_groups[images], p.text_groups, first, first[:-1], images)
    part = p._replace(
        x=p.x[images],
        teacher_x=None if p.teacher_x is None else p.teacher_x[images],
        **tables._asdict(),
    )
    saved, upstream = _taken(w.saved, images), _taken(w.upstream, images)
    return replace(w, problem=part, saved=saved, upstream=upstream)


def _swapped(w: Workload) -> Workload:
    """The transpose: texts for images.

    Row i's only positive is column i, before and after: the tables of the pairs stay as they are.
    """
    return replace(w, problem=_swap(w.problem), saved=_swap(w.saved), upstream=_swap(w.upstream))


def _swap(numbers: Any) -> Any:
    named = numbers._asdict()
    for one, other in _PAIRED:
        if one in named:
            named[one], named[other] = named[other], named[one]
    for name in (*_OF_ROWS, _POSITIVES):
        if name in named:
            named[name] = torch.cat(named[name].tensor_split(2)[::-1])
    return type(numbers)(**named)
