"""Merge parts of the operator's sums: of rows over blocks of columns, of columns over ranks.

Symbols as in ``backends/interface.py``, with a superscript for a part:

    n_j = logsumexp_r n_j^r        t_j = logsumexp_r t_j^r        m_j = sum_r m_j^r
    e_j = logsumexp_r e_j^r        |Neg_j| = sum_r |Neg_j^r|
    p^r = softmax_r(t_j^r)         u_j = u_j^0 + sum_r p^r (u_j^r - u_j^0)

and back dn_j^r = dn_j exp(n_j^r - n_j), du_j^r = du_j exp(t_j^r - t_j), dm_j^r = dm_j, and e_j as
n_j. The shares p^r are rounded: they do not add up to 1, hence the differences. The entropy of all
columns is sum_r p^r h_j^r and that of the shares.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mxm_kernels.backends.interface import Statistics, Upstream


class Merged(NamedTuple):
    """Statistics of rows or columns, (rows,) each, or empty where they are not wanted."""

    neg_lse: Tensor
    teacher_mean: Tensor
    neg_sum: Tensor
    excluded_lse: Tensor
    teacher_lse: Tensor
    hardest: Tensor
    entropy: Tensor
    num_negatives: Tensor


Names = tuple[str, ...]


def names_of(teacher: bool, diagnostics: bool, neg_sum: bool, removes: bool = False) -> Names:
    """The fields of :class:`Merged` that there are, in its order.

    ``teacher``: T is summed. ``removes``: rules remove pairs.
    """
    there = {
        "neg_lse": True,
        "teacher_mean": teacher,
        "neg_sum": neg_sum,
        "excluded_lse": teacher and removes,
        "teacher_lse": teacher,
        "hardest": diagnostics,
        "entropy": diagnostics and teacher,
        "num_negatives": removes,
    }
    return tuple(name for name in Merged._fields if there[name])


def packed(statistics: Statistics, names: Names, rows: slice) -> Tensor:
    """(rows, k) the fields of some rows of the list, to be sent."""
    return torch.stack([getattr(statistics, name)[rows] for name in names], -1)


def unpacked(parts: Tensor, names: Names) -> Merged:
    """The fields (...) from what was sent (..., k)."""
    nothing = parts.new_empty(0)
    given = dict(zip(names, parts.unbind(-1), strict=True))
    return Merged(*(given.get(name, nothing) for name in Merged._fields))


def of_rows(statistics: Statistics, images: int) -> Merged:
    """The statistics of the ``images`` rows of S."""
    return Merged(*(getattr(statistics, name)[:images] for name in Merged._fields))


def merge(parts: Tensor, names: Names) -> Merged:
    """Merge W parts of the sums of some rows or columns, (W, rows, k)."""
    p = unpacked(parts, names)
    made = p._replace(neg_lse=p.neg_lse.logsumexp(0))
    if "neg_sum" in names:
        made = made._replace(neg_sum=p.neg_sum.sum(0))
    if "excluded_lse" in names:
        made = made._replace(excluded_lse=p.excluded_lse.logsumexp(0))
    if "num_negatives" in names:
        made = made._replace(num_negatives=p.num_negatives.sum(0))
    if "hardest" in names:
        made = made._replace(hardest=p.hardest.amax(0))
    if "teacher_lse" not in names:
        return made
    t = p.teacher_lse.logsumexp(0)
    shares = shares_of(p.teacher_lse, t)
    first = p.teacher_mean[0]
    u = first + (shares * (p.teacher_mean - first)).sum(0)
    made = made._replace(teacher_mean=u, teacher_lse=t)
    if "entropy" in names:
        entropy = (shares * p.entropy + torch.special.entr(shares)).sum(0)
        made = made._replace(entropy=entropy)
    return made


def shares_of(parts: Tensor, total: Tensor) -> Tensor:
    """exp(parts - total), 0 where there is nothing at all."""
    return (parts - total).exp().masked_fill(total == -torch.inf, 0)


class Whole(NamedTuple):
    """The log-sum-exps (rows,) that parts were merged into; empty where there are none."""

    neg_lse: Tensor
    excluded_lse: Tensor
    teacher_lse: Tensor


def whole_of(merged: Merged) -> Whole:
    """The log-sum-exps of what was merged."""
    return Whole(merged.neg_lse, merged.excluded_lse, merged.teacher_lse)


def shared_out(d: Upstream, rows: slice, parts: Tensor, whole: Whole, names: Names) -> Tensor:
    """(W, rows, k) gradients by W parts of some rows of the list, from those by the whole.

    ``parts`` is what was merged into ``whole``. The fields are those of :class:`Upstream` without
    the positives, as far as there are any.
    """
    p = unpacked(parts, names)
    made = [d.neg_lse[rows] * shares_of(p.neg_lse, whole.neg_lse)]
    if "teacher_mean" in names:
        made.append(d.teacher_mean[rows] * shares_of(p.teacher_lse, whole.teacher_lse))
    if "neg_sum" in names:
        made.append(d.neg_sum[rows].expand_as(p.neg_sum))
    if "excluded_lse" in names:
        made.append(d.excluded_lse[rows] * shares_of(p.excluded_lse, whole.excluded_lse))
    return torch.stack(made, -1)


def with_columns(d: Upstream, images: int, of_columns: Tensor, names: Names) -> Upstream:
    """The gradients of the ``images`` first rows, and of the columns (N, k) behind them."""
    there = [name for name in Upstream._fields if name in names]
    columns = dict(zip(there, of_columns.unbind(-1), strict=True))
    return d._replace(
        **{name: torch.cat([getattr(d, name)[:images], v]) for name, v in columns.items()}
    )


def joined(rows: Merged, cols: Merged, *positives: Tensor) -> tuple[Tensor, ...]:
    """The fields of Statistics, without what is kept, from a rank's rows and its columns."""
    n, *others = (torch.cat(pair) for pair in zip(rows, cols, strict=True))
    return n, torch.cat(positives), *others
