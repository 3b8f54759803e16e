"""Merge parts of the operator's sums: of rows over blocks of columns, of columns over ranks.

Symbols as in ``backends/interface.py``, with a superscript for a part:

    n_j = logsumexp_r n_j^r      t_j = logsumexp_r t_j^r      u_j = sum_r exp(t_j^r - t_j) u_j^r

and back dn_j^r = dn_j exp(n_j^r - n_j), du_j^r = du_j exp(t_j^r - t_j).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mxm_kernels.backends.interface import Statistics


class Merged(NamedTuple):
    """Statistics of rows or columns, (rows,) each, or empty where they are not wanted."""

    neg_lse: Tensor
    teacher_mean: Tensor
    teacher_lse: Tensor
    hardest: Tensor
    entropy: Tensor


def of_rows(statistics: Statistics, images: int) -> Merged:
    """The statistics of the ``images`` rows of S."""
    return Merged(*(getattr(statistics, name)[:images] for name in Merged._fields))


def row_parts(statistics: Statistics, images: int) -> Tensor:
    """(M, k) the same as :func:`merge` takes them."""
    return torch.stack([v[:images] for v in _vectors(statistics)], -1)


def column_parts(statistics: Statistics, images: int) -> Tensor:
    """(N, k) those of the columns, the list's rows behind the ``images``."""
    return torch.stack([v[images:] for v in _vectors(statistics)], -1)


def _vectors(s: Statistics) -> list[Tensor]:
    """The vectors of rows that there are, in the order of :class:`Merged`."""
    every = [getattr(s, name) for name in Merged._fields]
    return [every[0], *(v for v in every[1:] if len(v))]


def merge(parts: Tensor, teacher: bool, diagnostics: bool) -> Merged:
    """Merge W parts of the sums of some rows or columns, (W, rows, k)."""
    columns = list(parts.unbind(-1))
    n = columns.pop(0).logsumexp(0)
    u, t, hardest, entropy = (parts.new_empty(0) for _ in range(4))
    if teacher:
        u_parts, t_parts = columns.pop(0), columns.pop(0)
        t = t_parts.logsumexp(0)
        shares = shares_of(t_parts, t)
        u = (shares * u_parts).sum(0)
    if diagnostics:
        hardest = columns.pop(0).amax(0)
        if teacher:
            # Entropy t - sum_i p_i T_i, and of a rank's part t^r - h^r = sum_i p_i^r T_i.
            mean = (t_parts - columns.pop(0)).masked_fill(t_parts == -torch.inf, 0)
            entropy = t - (shares * mean).sum(0)
    return Merged(n, u, t, hardest, entropy)


def shares_of(parts: Tensor, total: Tensor) -> Tensor:
    """exp(parts - total), 0 where there is nothing at all."""
    return (parts - total).exp().masked_fill(total == -torch.inf, 0)


def joined(rows: Merged, cols: Merged, *positives: Tensor) -> tuple[Tensor, ...]:
    """The fields of Statistics, without what is kept, from a rank's rows and its columns."""
    n, *others = (torch.cat(pair) for pair in zip(rows, cols, strict=True))
    return n, torch.cat(positives), *others
