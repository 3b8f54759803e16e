"""The losses of the rows and their derivatives in C++, one sweep over the list."""

from __future__ import annotations

import torch

from mxm_kernels.backends.interface import FusedFormula, RowLosses, RowProblem
from mxm_kernels.backends.native.extension import cpp, threads


def row_losses(level: str, problem: RowProblem, formula: FusedFormula) -> RowLosses:
    """Losses of the rows and their derivatives, by the instructions of ``level``."""
    n, S, parameter = problem.neg_lse, problem.positives, problem.parameter
    made = RowLosses(
        torch.empty_like(n),
        torch.empty_like(n),
        torch.empty_like(S),
        n.new_empty(len(n) if parameter.numel() else 0),
    )
    arrays = [v.data_ptr() if v.numel() else 0 for v in problem[:-1]]
    results = [v.data_ptr() if v.numel() else 0 for v in made]
    sizes, used = (len(n), len(S), parameter.ndim), threads(16 * (len(n) + len(S)))
    cpp.row_losses(level, *formula, arrays, *sizes, results, used)
    return made
