"""A queue's columns in the sums of the rows that see it.

With n and n' the log-sum-exps of a row over its negatives and over the queue's, t and t' those of
the teacher over all columns, and u and u' the teacher's averages:

    n <- log(exp n + exp n')        t <- log(exp t + exp t')
    u <- u + sigmoid(t' - t) (u' - u)

Two rounded shares that do not add up to 1 would add a part of u itself: u' - u is smaller.

``total`` () is the sum of the queue's features. A feature of -inf makes terms vanish, and 0 times
a sum that is not finite is NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels.backends.row_interface import QueuePlace, RowSums


def merged(rows: RowSums, queue: RowSums, total: Tensor, place: QueuePlace) -> RowSums:
    """The sums of all rows, (R,) each, with the queue's in those of the rows that see it."""
    n, u, t = (v.clone() for v in rows)
    n0, n1 = _both(n, queue.neg_lse, place)
    n0.copy_(torch.logaddexp(n0, n1) + 0 * total)
    if len(t):
        (t0, t1), (u0, u1) = (_both(*v, place) for v in ((t, queue[2]), (u, queue[1])))
        u0.lerp_(u1, share(t1, t0))
        t0.copy_(torch.logaddexp(t0, t1))
    return RowSums(n, u, t)


def gradients(
    dn: Tensor, du: Tensor, rows: RowSums, queue: RowSums, place: QueuePlace
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of n (R,) and u (R,) of the rows, then of n and u of the queue's list."""
    n = _split(dn, rows.neg_lse, queue.neg_lse, place)
    if not len(du):
        return n[0], du.clone(), n[1], du.clone()
    u = _split(du, rows.teacher_lse, queue.teacher_lse, place)
    return n[0], u[0], n[1], u[1]


def _split(grad: Tensor, a: Tensor, b: Tensor, place: QueuePlace) -> tuple[Tensor, Tensor]:
    """A gradient (R,), shared out between log-sum-exps a (R,) and b of the queue's list."""
    own, queued = grad.clone(), torch.zeros_like(b)
    (g0, g1), (a, b) = _both(own, queued, place), _both(a, b, place)
    g1.copy_(g0 * share(b, a))
    g0.mul_(share(a, b))
    return own, queued


def _both(rows: Tensor, queue: Tensor, place: QueuePlace) -> tuple[Tensor, Tensor]:
    """The parts of two vectors that belong to the rows that see the queue."""
    return rows.narrow(0, place.first, place.length), queue[: place.length]


def share(a: Tensor, b: Tensor) -> Tensor:
    """exp(a) / (exp(a) + exp(b)), a half where neither is anything."""
    nothing = (a == -torch.inf) & (b == -torch.inf)
    return torch.sigmoid((a - b).masked_fill(nothing, 0))
