"""What a launch gives, held to float64: all of a small batch, or sampled rows of a large one.

The reference is the ``blocked`` backend on widened features. An error is ||got - expected|| /
||expected||; it may be 1e-5, or one unit of a 16-bit dtype's precision for the gradients, which are
rounded to it twice. The error of u is relative to n. u is an average of many S of either sign, so
it may be far smaller than its terms, and the loss subtracts it from a log-sum-exp.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mxm_kernels.backends import load
from mxm_kernels.backends.interface import Needs
from mxm_kernels.tuning.workload import Workload, widened

STATISTIC_BOUND = 1e-5
SAMPLE = 64  # rows, and columns
EVERYTHING = Needs(x=True, y=True, scale=True, bias=True)
_PAIRED = (
    ("x", "y"), ("teacher_x", "teacher_y"), ("image_groups", "text_groups"),
    *((f"{name}_rows", f"{name}_cols") for name in "nutmhr"),
)  # fmt: skip


def expected(w: Workload) -> Any:
    """The results of the phase in float64."""
    wide = replace(
        w,
        problem=widened(w.problem),
        bias=w.bias.double(),
        saved=widened(w.saved),
        upstream=widened(w.upstream),
    )
    return wide.run(load("blocked"), EVERYTHING)


def wrong(w: Workload, got: Any, wanted: Any) -> str | None:
    """What is not as good as its dtype allows; None: all is right."""
    gradient = "gradient" in w.cell.phase
    for name, result, exact in zip(wanted._fields, got, wanted, strict=True):
        if not isinstance(exact, Tensor) or not exact.numel() or name == "kept":
            continue
        rounded = gradient and name in ("x", "y") and w.cell.dtype != torch.float32
        bound = torch.finfo(w.cell.dtype).eps if rounded else STATISTIC_BOUND
        beside = getattr(wanted, name.replace("u_", "n_")) if name.startswith("u_") else exact
        error = _error(result, exact, float(max(exact.norm(), beside.norm())))
        if not error <= bound:
            return f"{name} is off by {error:.2g}, allowed {bound:.2g}"
    return None


def _error(got: Tensor, exact: Tensor, size: float) -> float:
    if got.shape != exact.shape or not bool(torch.isfinite(got).all()):
        return float("inf")
    return float((got.double() - exact).norm()) / size


class Sample:
    """Sampled rows and columns of a batch with one positive in each row, and their float64."""

    def __init__(self, w: Workload) -> None:
        self.rows = self._exact(w)
        self.columns = self._exact(_swapped(w))

    @staticmethod
    def _exact(w: Workload) -> tuple[Tensor, Workload, Any]:
        generator = torch.Generator().manual_seed(2)
        rows = torch.randperm(len(w.problem.x), generator=generator)[:SAMPLE]
        rows = rows.to(w.problem.x.device)
        part = _part(w, rows)
        return rows, part, expected(part)

    def wrong(self, got: Any) -> str | None:
        """As the function ``wrong``, of the results of the whole batch."""
        for side, results in (("rows", got), ("columns", _swap(got))):
            rows, part, exact = getattr(self, side)
            # Columns, and sums over everything, are those of the sample only.
            whole = {n: v.new_empty(0) for n, v in exact._asdict().items() if not _of_rows(n)}
            found = _taken(results, rows)._replace(**whole)
            fault = wrong(part, found, exact._replace(**whole))
            if fault is not None:
                return f"{side} of a sample: {fault}"
        return None


def _of_rows(name: str) -> bool:
    """Whether a result belongs to the rows, one entry each."""
    return name == "x" or name.endswith("_rows")


def _taken(numbers: Any, rows: Tensor) -> Any:
    """What belongs to the rows, and their positives, cut to some of them."""
    taken = {
        name: value[..., rows] if name == "positives" else value[rows]
        for name, value in numbers._asdict().items()
        if (_of_rows(name) or name == "positives") and value.numel()
    }
    return numbers._replace(**taken)


def _part(w: Workload, rows: Tensor) -> Workload:
    """Some rows against all columns."""
    p, first = w.problem, torch.arange(len(rows) + 1, device=rows.device)
    part = p._replace(
        x=p.x[rows],
        teacher_x=None if p.teacher_x is None else p.teacher_x[rows],
        image_groups=p.image_groups[rows],
        image_offsets=first,
        pair_images=first[:-1],
        pair_texts=rows,
    )
    return replace(w, problem=part, saved=_taken(w.saved, rows), upstream=_taken(w.upstream, rows))


def _swapped(w: Workload) -> Workload:
    """The transpose: texts for images. Row i's only positive is column i, before and after."""
    return replace(w, problem=_swap(w.problem), saved=_swap(w.saved), upstream=_swap(w.upstream))


def _swap(numbers: Any) -> Any:
    named = numbers._asdict()
    for one, other in _PAIRED:
        if one in named:
            named[one], named[other] = named[other], named[one]
    return type(numbers)(**named)
