"""The lines of both scratches into the statistics, in a fixed order, in one launch.

The first programs take the rows, the others the columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mxm_kernels.backends.triton.exponentials import LEAST_SUM, LN2
from mxm_kernels.backends.triton.partials import load_partial
from mxm_kernels.backends.triton.rescue import TILE, again

BLOCK = {"BLOCK": 32, **TILE}


def options(float8: bool) -> dict[str, int]:
    """Compiler options: widening a float8 teacher spills 8 or 16 bytes in the usual 4 warps."""
    return {"num_warps": 8 if float8 else 4}


@triton.jit
def _join(a, b):
    """Merge two partial statistics, against the greater reference."""
    top = tl.maximum(a[0], b[0])
    p, q = tl.exp2(a[0] - top), tl.exp2(b[0] - top)
    return top, a[1] * p + b[1] * q, a[2] * p + b[2] * q, a[3] * p + b[3] * q


@triton.jit
def _held(total):
    """Whether a sum is within float32's reach, for its reference; NaN is not."""
    return (total >= LEAST_SUM) & (total < float("inf"))


@triton.jit
def _join_lines(state, lines, length, index, inside, LINE: tl.constexpr, FIELDS: tl.constexpr):
    """Merge the partial statistics of all lines, in order; LINE fields from one to the next."""
    partial = load_partial(state, length, index, inside, FIELDS)
    for line in range(1, lines):
        there = state + tl.cast(line, tl.int64) * LINE * length
        partial = _join(partial, load_partial(there, length, index, inside, FIELDS))
    return partial


@triton.jit
def _greatest(tops, lines, LINE, index, inside):
    """The maximum over all lines."""
    top = tl.load(tops + index, mask=inside, other=float("-inf"))
    for line in range(1, lines):
        there = tops + tl.cast(line, tl.int64) * LINE + index
        top = tl.maximum(top, tl.load(there, mask=inside, other=float("-inf")))
    return top


@triton.jit
def _merge_block(
    x, y, teacher_x, teacher_y, scale, teacher_scale, x_groups, y_groups,
    state, n, u, t, m, h, block, lines, first, length, M, N, D, TEACHER_D,
    T_FIELDS: tl.constexpr, DIAGNOSTICS: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A block of the rows first : first + length of x, of M, against the N of y."""
    FIELDS: tl.constexpr = 2 + T_FIELDS + DIAGNOSTICS
    index = block * BLOCK + tl.arange(0, BLOCK)
    inside = index < length
    row = first + index
    S = _join_lines(state, lines, length, index, inside, FIELDS, 2)
    n_value = (S[0] + tl.log2(S[1])) * LN2
    lost = tl.where(_held(S[1]), 0, 1)  # a number: Triton 3.6 fails to carry a truth to gfx942
    T = S
    if T_FIELDS:
        T = _join_lines(state + 2 * length, lines, length, index, inside, FIELDS, T_FIELDS)
        lost = tl.where(_held(T[1]), lost, 1)
    u_value = T[2] / T[1]
    t_value = (T[0] + tl.log2(T[1])) * LN2
    h_value = t_value - T[3] / T[1]
    lost = tl.where(inside, lost, 0)
    if tl.max(lost, 0) > 0:
        n_new, t_new, u_new, h_new = again(
            x, y, teacher_x, teacher_y, scale, teacher_scale, x_groups, y_groups,
            row, M, N, D, TEACHER_D, T_FIELDS, BLOCK_N, BLOCK_D, PRECISION, WIDEN,
        )  # fmt: skip
        n_value = tl.where(lost > 0, n_new, n_value)
        t_value = tl.where(lost > 0, t_new, t_value)
        u_value = tl.where(lost > 0, u_new, u_value)
        h_value = tl.where(lost > 0, h_new, h_value)
    tl.store(n + row, n_value, mask=inside)
    if T_FIELDS:
        tl.store(t + row, t_value, mask=inside)
        tl.store(u + row, u_value, mask=inside)
        if DIAGNOSTICS:
            # Rounding may pass 0.
            tl.store(h + row, tl.where(h_value < 0, 0.0, h_value), mask=inside)
    if DIAGNOSTICS:
        tops = state + (FIELDS - 1) * length
        top = _greatest(tops, lines, FIELDS * length, index, inside)
        # A maximum leaves NaN out.
        tl.store(m + row, tl.where(n_value != n_value, n_value, top), mask=inside)


@triton.jit(do_not_specialize=["M", "N", "row_lines", "rows", "col_lines", "first", "width"])
def merge_kernel(
    x, y, teacher_x, teacher_y, scale, teacher_scale, image_groups, text_groups,
    row_state,  # (row_lines, FIELDS, rows)
    col_state,  # (col_lines, FIELDS, width)
    n, u, t, m, h,  # (M + N,) out
    M,
    N,
    D,
    TEACHER_D,
    row_lines,
    rows,  # M, or 0 while columns are to come
    col_lines,
    first,  # first column of col_state
    width,
    T_FIELDS: tl.constexpr,
    DIAGNOSTICS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    FLOAT8: tl.constexpr,
):  # fmt: skip
    """Merge both scratches into n, with a teacher u and t, for diagnostics m and h."""
    program = tl.program_id(0)
    row_blocks = tl.cdiv(rows, BLOCK)
    if program < row_blocks:
        _merge_block(
            x, y, teacher_x, teacher_y, scale, teacher_scale, image_groups, text_groups,
            row_state, n, u, t, m, h,
            program, row_lines, 0, rows, M, N, D, TEACHER_D,
            T_FIELDS, DIAGNOSTICS, BLOCK, BLOCK_N, BLOCK_D, PRECISION, WIDEN,
        )  # fmt: skip
    else:
        _merge_block(
            y, x, teacher_y, teacher_x, scale, teacher_scale, text_groups, image_groups,
            col_state, n + M, u + M, t + M, m + M, h + M,
            program - row_blocks, col_lines, first, width, N, M, D, TEACHER_D,
            T_FIELDS, DIAGNOSTICS, BLOCK, BLOCK_N, BLOCK_D, PRECISION, WIDEN,
        )  # fmt: skip
