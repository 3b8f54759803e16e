"""Merge parts of the operator's sums: of rows over blocks of columns, of columns over ranks.

Symbols as in ``backends/problem.py``, with a superscript for a part:

    n_j = logsumexp_r n_j^r      t_j = logsumexp_r t_j^r      u_j = sum_r exp(t_j^r - t_j) u_j^r

and back dn_j^r = dn_j exp(n_j^r - n_j), du_j^r = du_j exp(t_j^r - t_j).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mxm_kernels.backends.problem import Statistics


class Merged(NamedTuple):
    """Statistics of rows or columns, (rows,) each, or empty where they are not wanted."""

    n: Tensor
    u: Tensor
    t: Tensor
    m: Tensor
    h: Tensor


def row_parts(s: Statistics, teacher: bool, diagnostics: bool) -> Tensor:
    """(M, k): what :func:`merge` merges, of rows."""
    return _stack((s.n_rows, s.u_rows, s.t_rows, s.m_rows, s.h_rows), teacher, diagnostics)


def column_parts(s: Statistics, teacher: bool, diagnostics: bool) -> Tensor:
    """(N, k): what :func:`merge` merges, of columns."""
    return _stack((s.n_cols, s.u_cols, s.t_cols, s.m_cols, s.h_cols), teacher, diagnostics)


def _stack(numbers: tuple[Tensor, ...], teacher: bool, diagnostics: bool) -> Tensor:
    wanted = (True, teacher, teacher, diagnostics, diagnostics and teacher)
    return torch.stack([v for v, want in zip(numbers, wanted, strict=True) if want], -1)


def merge(parts: Tensor, teacher: bool, diagnostics: bool) -> Merged:
    """Merge W parts of the sums of some rows or columns, (W, rows, k)."""
    columns = list(parts.unbind(-1))
    n = columns.pop(0).logsumexp(0)
    u, t, m, h = (parts.new_empty(0) for _ in range(4))
    if teacher:
        u_parts, t_parts = columns.pop(0), columns.pop(0)
        t = t_parts.logsumexp(0)
        shares = shares_of(t_parts, t)
        u = (shares * u_parts).sum(0)
    if diagnostics:
        m = columns.pop(0).amax(0)
        if teacher:
            # Entropy t - sum_i p_i T_i, and of a rank's part t^r - h^r = sum_i p_i^r T_i.
            mean = (t_parts - columns.pop(0)).masked_fill(t_parts == -torch.inf, 0)
            h = t - (shares * mean).sum(0)
    return Merged(n, u, t, m, h)


def shares_of(parts: Tensor, total: Tensor) -> Tensor:
    """exp(parts - total), 0 where there is nothing at all."""
    return (parts - total).exp().masked_fill(total == -torch.inf, 0)
