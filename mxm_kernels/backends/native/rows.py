"""The losses of the rows and their derivatives in C++, one sweep over the list."""

from __future__ import annotations

from mxm_kernels.backends.native.extension import cpp, threads
from mxm_kernels.backends.row_interface import FusedFormula, RowLosses, RowProblem


def row_losses(level: str, problem: RowProblem, formula: FusedFormula) -> RowLosses:
    """Losses of the rows and their derivatives, by the instructions of ``level``."""
    made, rows, positives = problem.allocate(), len(problem.neg_lse), len(problem.positives)
    arrays = [v.data_ptr() if v.numel() else 0 for v in problem[:-1]]
    results = [v.data_ptr() if v.numel() else 0 for v in made]
    used = threads(16 * (rows + positives))  # each costs some elements of a tile
    stride = problem.parameter.ndim  # 0: one parameter of all rows
    cpp.row_losses(level, *formula, arrays, rows, positives, stride, results, used)
    return made
