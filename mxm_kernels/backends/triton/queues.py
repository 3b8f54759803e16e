"""A queue's columns in the sums of the rows that see it: one launch, and one in backward.

Symbols and formulas as in ``backends/queues.py``, which defines them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.row_interface import QueuePlace, RowSums
from mxm_kernels.backends.triton.sigmoid_terms import sigmoid, softplus

BLOCK = 256


@triton.jit
def _difference(a, b):
    """A - b, 0 where both are -inf."""
    return tl.where((a == float("-inf")) & (b == float("-inf")), 0.0, a - b)


@triton.jit
def _logaddexp(a, b):
    """NaN where one is."""
    return tl.where(a > b, a, b) + softplus(-tl.abs(_difference(a, b)))


@triton.jit(do_not_specialize=["rows", "first", "count"])
def merge_queue_kernel(
    n, u, t,  # (rows,), u and t not read without TEACHER
    queue_n, queue_u, queue_t,  # of the queue's list
    total,  # ()
    n_out, u_out, t_out,  # (rows,)
    rows,
    first,
    count,
    TEACHER: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of a block of rows; a row that does not see the queue keeps its own."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, other = row < rows, row - first
    sees = inside & (other >= 0) & (other < count)
    n0 = tl.load(n + row, mask=inside, other=0.0)
    n1 = tl.load(queue_n + other, mask=sees, other=float("-inf"))
    made = _logaddexp(n0, n1) + 0.0 * tl.load(total)
    tl.store(n_out + row, tl.where(sees, made, n0), mask=inside)
    if TEACHER:
        t0 = tl.load(t + row, mask=inside, other=0.0)
        t1 = tl.load(queue_t + other, mask=sees, other=float("-inf"))
        u0 = tl.load(u + row, mask=inside, other=0.0)
        u1 = tl.load(queue_u + other, mask=sees, other=0.0)
        mean = u0 + sigmoid(_difference(t1, t0)) * (u1 - u0)
        tl.store(u_out + row, tl.where(sees, mean, u0), mask=inside)
        tl.store(t_out + row, tl.where(sees, _logaddexp(t0, t1), t0), mask=inside)


@triton.jit
def _share_out(grad, a, b, row, rows, first, count, queued, a_out, b_out):
    """Shares a gradient out between log-sum-exps a of the rows and b of the queue's list."""
    inside, other = row < rows, row - first
    sees = inside & (other >= 0) & (other < count)
    difference = _difference(
        tl.load(a + row, mask=sees, other=0.0), tl.load(b + other, mask=sees, other=0.0)
    )
    g = tl.load(grad + row, mask=inside, other=0.0)
    tl.store(a_out + row, tl.where(sees, g * sigmoid(difference), g), mask=inside)
    tl.store(b_out + other, g * sigmoid(-difference), mask=sees)
    tl.store(b_out + row, tl.zeros_like(g), mask=(row >= count) & (row < queued))


@triton.jit(do_not_specialize=["rows", "first", "count", "queued"])
def merge_queue_backward_kernel(
    dn, du,  # (rows,)
    n, t,  # (rows,)
    queue_n, queue_t,  # (queued,)
    dn_out, du_out,  # (rows,)
    queue_dn, queue_du,  # (queued,)
    rows,
    first,
    count,
    queued,
    TEACHER: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients by both sums; the queue's columns have none."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    _share_out(dn, n, queue_n, row, rows, first, count, queued, dn_out, queue_dn)
    if TEACHER:
        _share_out(du, t, queue_t, row, rows, first, count, queued, du_out, queue_du)


def merge_queue(rows: RowSums, queue: RowSums, total: Tensor, place: QueuePlace) -> RowSums:
    """The sums of all rows."""
    made, length = RowSums(*map(torch.empty_like, rows)), len(rows.neg_lse)
    merge_queue_kernel[(triton.cdiv(length, BLOCK),)](
        *rows, *queue, total, *made, length, *place,
        TEACHER=len(rows.teacher_lse) > 0, BLOCK=BLOCK,
    )  # fmt: skip
    return made


def merge_queue_backward(
    dn: Tensor, du: Tensor, rows: RowSums, queue: RowSums, place: QueuePlace
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by n and u of the rows, and by those of the queue's list."""
    made = [torch.empty_like(v) for v in (dn, du, queue.neg_lse, queue.teacher_lse)]
    length, queued = len(dn), len(queue.neg_lse)
    merge_queue_backward_kernel[(triton.cdiv(max(length, queued), BLOCK),)](
        dn, du, rows.neg_lse, rows.teacher_lse, queue.neg_lse, queue.teacher_lse, *made,
        length, *place, queued, TEACHER=len(du) > 0, BLOCK=BLOCK,
    )  # fmt: skip
    return made[0], made[1], made[2], made[3]
