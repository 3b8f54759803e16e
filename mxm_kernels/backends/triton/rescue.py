"""Statistics of the rows and columns that lie far below the rest, computed again.

``statistics`` sums against one reference for many rows, so a row whose greatest logit is 110
nats below the greatest of all has sums that vanish, and a row without an entry has none. The merge
leaves NaN there. A program looks at a block of rows, or of columns, and returns at once if it
has no NaN; else it walks its whole width, each row against its own maximum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mxm_kernels.backends.problem import Problem, Statistics
from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.exponentials import LN2, LOG2E
from mxm_kernels.backends.triton.tile import products, teacher_arguments

BLOCK = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_D": 32}
OPTIONS = {"num_warps": 4, "num_stages": 1}


@triton.jit
def _add(top, sums, values, weights, FIELDS: tl.constexpr):
    """Add the entries of a tile to (maximum, sums against it) of each of its rows."""
    new = tl.maximum(top, tl.max(values, 1))
    # An empty row has maximum -inf; -inf - -inf would be NaN.
    safe = tl.where(new == float("-inf"), 0.0, new)
    factor = tl.exp2(top - safe)
    share = tl.exp2(values - safe[:, None])
    total = sums[0] * factor + tl.sum(share, 1)
    weighted, own = total, total
    if FIELDS >= 3:
        weighted = sums[1] * factor + tl.sum(share * weights, 1)
    if FIELDS == 4:
        own = sums[2] * factor + tl.sum(share * values, 1)
    return new, (total, weighted, own)


@triton.jit
def _again(
    x, y, teacher_x, teacher_y, scale, teacher_scale, x_groups, y_groups,
    n, u, t, h, block, M, N, D, TEACHER_D,
    T_FIELDS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Rewrite n, u, t and h of the rows of a block of x in which n or t is NaN."""
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < M
    found = tl.load(n + rows, mask=inside, other=0.0)
    lost = found != found
    if T_FIELDS:
        found = tl.load(t + rows, mask=inside, other=0.0)
        lost = lost | (found != found)
    if tl.max(lost.to(tl.int32), 0) > 0:
        row = tl.minimum(rows, M - 1)
        group = tl.load(x_groups + row)
        s = tl.load(scale)
        S_top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        T_top = S_top
        zero = tl.zeros((BLOCK_M,), tl.float32)
        S_total, T_total, T_weighted, T_own = zero, zero, zero, zero
        for col_block in range(0, tl.cdiv(N, BLOCK_N)):
            cols = col_block * BLOCK_N + tl.arange(0, BLOCK_N)
            col = tl.minimum(cols, N - 1)
            S = products(x, y, row, col, D, BLOCK_D, PRECISION, WIDEN) * s
            kept = (cols < N)[None, :] & (group[:, None] != tl.load(y_groups + col)[None, :])
            negatives = tl.where(kept, S * LOG2E, float("-inf"))
            S_top, sums = _add(S_top, (S_total, S_total, S_total), negatives, S, 2)
            S_total = sums[0]
            if T_FIELDS:
                T = products(teacher_x, teacher_y, row, col, TEACHER_D, BLOCK_D, PRECISION, WIDEN)
                T = T * (tl.load(teacher_scale) * LOG2E)
                T = tl.where((cols < N)[None, :], T, -1e30)  # -inf times a share of 0 is NaN
                T_top, sums = _add(T_top, (T_total, T_weighted, T_own), T, S, T_FIELDS)
                T_total, T_weighted, T_own = sums
        tl.store(n + rows, (S_top + tl.log2(S_total)) * LN2, mask=lost)
        if T_FIELDS:
            t_value = (T_top + tl.log2(T_total)) * LN2
            tl.store(t + rows, t_value, mask=lost)
            tl.store(u + rows, T_weighted / T_total, mask=lost)
            if T_FIELDS == 4:
                entropy = t_value - T_own / T_total * LN2
                tl.store(h + rows, tl.maximum(entropy, 0.0), mask=lost)


@triton.jit(do_not_specialize=["M", "N"])
def rescue_kernel(
    x,  # (M, D)
    y,  # (N, D)
    teacher_x,  # (M, TEACHER_D)
    teacher_y,  # (N, TEACHER_D)
    scale,  # ()
    teacher_scale,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    n_rows,  # (M,) in and out, as are the following
    n_cols,  # (N,)
    u_rows,  # (M,)
    u_cols,  # (N,)
    t_rows,  # (M,)
    t_cols,  # (N,)
    h_rows,  # (M,)
    h_cols,  # (N,)
    M,
    N,
    D,
    TEACHER_D,
    T_FIELDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """A block of rows, or behind them one of columns, in each program."""
    block = tl.program_id(0)
    row_blocks = tl.cdiv(M, BLOCK_M)
    if block < row_blocks:
        _again(
            x, y, teacher_x, teacher_y, scale, teacher_scale, image_groups, text_groups,
            n_rows, u_rows, t_rows, h_rows, block, M, N, D, TEACHER_D,
            T_FIELDS, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, WIDEN,
        )  # fmt: skip
    else:
        _again(
            y, x, teacher_y, teacher_x, scale, teacher_scale, text_groups, image_groups,
            n_cols, u_cols, t_cols, h_cols, block - row_blocks, N, M, D, TEACHER_D,
            T_FIELDS, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, WIDEN,
        )  # fmt: skip


def rescue(problem: Problem, out: Statistics, t_fields: int) -> None:
    """Compute again what the merge marked with NaN; ``problem`` is padded."""
    p = problem
    teacher_x, teacher_y, teacher_scale = teacher_arguments(p)
    rows, cols = p.x.shape[0], p.y.shape[0]
    blocks = triton.cdiv(rows, BLOCK["BLOCK_M"]) + triton.cdiv(cols, BLOCK["BLOCK_M"])
    rescue_kernel[(blocks,)](
        p.x, p.y, teacher_x, teacher_y, p.scale, teacher_scale, p.image_groups, p.text_groups,
        out.n_rows, out.n_cols, out.u_rows, out.u_cols, out.t_rows, out.t_cols,
        out.h_rows, out.h_cols, rows, cols, p.x.shape[1], teacher_x.shape[1],
        T_FIELDS=t_fields, **BLOCK, **launch.product_options(p.x.dtype, p.x.device), **OPTIONS,
    )  # fmt: skip
