"""Products of 16-bit features in 16-bit fixed point, as they are kept from forward to backward.

Entry (i, j) of S is a whole number of at most 32767 in magnitude, times u_i u_j:

    u_i = |x_i| / sqrt(32767)      u_j = |y_j| / sqrt(32767)      k_ij = <x_i, y_j> / (u_i u_j)

T alike. A row and a column have units of their own: one long row does not take the digits of all
others. A row that is not finite has the unit NaN, a row of zeros 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mxm_kernels.backends.interface import Problem

MOST = 32767
# Of s |x_i| |y_j|, anywhere: half a unit of a logit is 0.002 then, what bfloat16 takes from dS.
# float16 takes an eighth of it.
GREATEST_LOGIT = {torch.bfloat16: 128.0, torch.float16: 16.0}
LEAST_UNIT = 1e-30  # whose inverse, times another one, is an ordinary float
_ROWS = 1024  # rows that are widened to float64 at a time


def units_of(problem: Problem) -> Tensor:
    """(1 or 2, M + N) float32 units of the rows and columns of S, and of T."""
    norms = torch.stack([torch.cat([_norms(f) for f in pair]) for pair in problem.feature_pairs])
    units = (norms / math.sqrt(MOST)).float()
    return units.masked_fill_(~units.isfinite(), math.nan)


def too_coarse(problem: Problem, units: Tensor) -> bool:
    """Whether 16 bits are too few for S or T, or a unit is no ordinary number; looks at them.

    Backward then multiplies again, also where a feature or a scale is not finite.
    """
    s, t = problem.scale, problem.teacher_scale
    for scale, of_matrix in zip([s] if t is None else [s, t], units, strict=True):
        rows, cols = problem.halves(of_matrix)
        greatest = float(scale) * MOST * float(rows.max()) * float(cols.max())
        if not (float(scale) > 0 and greatest <= GREATEST_LOGIT[problem.x.dtype]):  # or NaN
            return True
    return bool(((units > 0) & (units < LEAST_UNIT)).any())


def inverse(units: Tensor) -> Tensor:
    """1 / units, and 0 for the unit of a row of zeros."""
    return torch.where(units > 0, 1 / units, 0)


def _norms(features: Tensor) -> Tensor:
    """(rows,) float64 lengths of the rows: the squares of finite numbers are finite there."""
    blocks = features.split(_ROWS)
    return torch.cat([torch.linalg.vector_norm(b.double(), dim=1) for b in blocks])
