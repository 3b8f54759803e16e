"""The matrix of a mean target that is linear in a given similarity (CWCL).

    w_ij = 1 + <a_i, b_j>          K_ij = w_ij (f_i / sum_j w_ij + f'_j / sum_i w_ij)

f are the factors of the rows, f' those of the columns. The sum of f_i v_i over the list of rows,
where v is the average of a row of S weighted by w, is then the sum of K_ij S_ij. A row whose w sum
to 0 adds nothing to K; what is not finite in a row of w is not finite in that row of K.
"""

from __future__ import annotations

import torch
from torch import Tensor


def target_matrix(a: Tensor, b: Tensor, factors: Tensor) -> Tensor:
    """(M, N) K, from features a (M, D') and b (N, D') and the factors (M + N,)."""
    w, M = (a @ b.T).add_(1), len(a)
    shares = over(factors, torch.cat([w.sum(1), w.sum(0)]))
    return torch.add(shares[:M, None], shares[M:]).mul_(w)


def over(factors: Tensor, totals: Tensor) -> Tensor:
    """Factors / totals, 0 where the total is 0."""
    return factors * totals.reciprocal().nan_to_num(nan=torch.nan, posinf=0.0, neginf=0.0)
