"""A batch for a cell of the settings table, and the phase of it that is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mxm_kernels.backends import load
from mxm_kernels.backends.base import Backend
from mxm_kernels.backends.interface import (
    Memory,
    Needs,
    Problem,
    SigmoidStatistics,
    Statistics,
    Upstream,
)
from mxm_kernels.backends.triton.settings import Cell
from mxm_kernels.folds import Folds
from mxm_kernels.memory import budget_of
from mxm_kernels.ops.library import make_problem

SCALE, BIAS = 1 / 0.03, -10.0  # of MXM-CLR, and SigLIP's at the start of a training
# The small batch on which every candidate is held to float64. Its tiles have tails, its instances
# are ragged, and some texts have no image.
CHECKED_ROWS, CHECKED_COLS, INSTANCES = 1037, 901, 313


@dataclass(frozen=True)
class Workload:
    """A batch, and what its phase reads beside it."""

    cell: Cell
    problem: Problem
    bias: Tensor  # (), of the sigmoid phases
    saved: Statistics | SigmoidStatistics  # by forward, for backward
    upstream: Upstream | SigmoidStatistics  # gradients

    def run(self, backend: Backend, needs: Needs) -> Any:
        """The phase's named results; ``needs`` says which gradients its backward computes."""
        return _PHASES[self.cell.phase.removeprefix("stored_")](self, backend, needs)


def small(cell: Cell, device: torch.device) -> Workload:
    """About a thousand rows of ragged instances, its statistics computed in float64."""
    rows, cols = min(CHECKED_ROWS, cell.rows), min(CHECKED_COLS, cell.rows)
    ids = torch.arange(rows) * 3 % INSTANCES, torch.arange(cols) * 5 % (INSTANCES + 7)
    return _workload(cell, _problem(cell, Folds.from_ids(*ids), rows, cols, device))


def timed(cell: Cell, device: torch.device) -> Workload:
    """``cell.rows`` images, each with a text of its own."""
    problem = _problem(cell, Folds.uniform(1, 1), cell.rows, cell.rows, device)
    return _workload(cell, problem)


def _problem(cell: Cell, folds: Folds, rows: int, cols: int, device: torch.device) -> Problem:
    generator = torch.Generator(device).manual_seed(0)

    def features(length: int) -> Tensor:
        noise = torch.randn(length, cell.D, generator=generator, device=device)
        return normalize(noise, dim=1).to(cell.dtype)

    x, y = features(rows), features(cols)
    teacher = (features(rows), features(cols)) if cell.teacher else None
    scale = torch.tensor(SCALE, device=device)
    tables = folds.to(x.device).tables(rows, cols, x.device)
    return make_problem(x, y, teacher, scale, scale if cell.teacher else None, tables)


def _workload(cell: Cell, problem: Problem) -> Workload:
    """The workload of a problem: statistics of the kernels, upstream gradients as of a mean."""
    bias = torch.tensor(BIAS, device=problem.x.device)
    backend, memory = load("triton"), _memory(cell, problem)
    generator = torch.Generator(bias.device).manual_seed(1)

    def shares(like: Tensor) -> Tensor:
        numbers = torch.rand(like.shape, generator=generator, device=like.device)
        return numbers / max(1, len(problem.x))

    saved: Statistics | SigmoidStatistics
    upstream: Upstream | SigmoidStatistics
    if "sigmoid" in cell.phase:
        saved = backend.sigmoid_forward(problem, bias, memory)
        upstream = SigmoidStatistics(*map(shares, saved))
    else:
        saved = backend.forward(problem, memory)
        given = Upstream(*map(shares, saved[: len(Upstream._fields)]))
        upstream = given._replace(positives=-given.positives)
    return Workload(cell, problem, bias, saved, upstream)


def _memory(cell: Cell, problem: Problem) -> Memory:
    """The memory of a call; S and T are kept where a training step would keep them."""
    keeps = cell.dtype != torch.float32 and cell.phase in ("statistics", "stored_gradient")
    return Memory(budget_of(problem.x.device), keeps)


def widened(numbers: Any) -> Any:
    """The named tuple with every floating-point tensor in float64."""
    return type(numbers)(
        *(v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in numbers)
    )


def _statistics(w: Workload, backend: Backend, needs: Needs) -> Any:
    return backend.forward(w.problem, _memory(w.cell, w.problem), w.cell.diagnostics)


def _gradient(w: Any, backend: Backend, needs: Needs) -> Any:
    return backend.backward(w.problem, w.saved, w.upstream, needs, _memory(w.cell, w.problem))


def _sigmoid_statistics(w: Workload, backend: Backend, needs: Needs) -> Any:
    return backend.sigmoid_forward(w.problem, w.bias, _memory(w.cell, w.problem))


def _sigmoid_gradient(w: Any, backend: Backend, needs: Needs) -> Any:
    run, memory = backend.sigmoid_backward, _memory(w.cell, w.problem)
    return run(w.problem, w.bias, w.saved.positives, w.upstream, needs, memory)


_PHASES: dict[str, Callable[[Workload, Backend, Needs], Any]] = {
    "statistics": _statistics,
    "gradient": _gradient,
    "sigmoid_statistics": _sigmoid_statistics,
    "sigmoid_gradient": _sigmoid_gradient,
}
