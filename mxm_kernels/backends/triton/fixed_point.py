"""Products of 16-bit features in 16 bits of fixed point, as they are kept for backward.

Entry (i, j) is an integer times u_i u_j with u_i = |x_i| / sqrt(32767), so the largest that it can
be, |x_i| |y_j|, is 32767. A unit for each row and each column keeps a long row from taking the
resolution of the others. A row that is not finite has a unit that is not, and decodes to NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST = tl.constexpr(32767.0)
# 1.5 times 2^23: a float32 of that size has steps of 1, so adding rounds to the nearest integer,
# and the last 16 bits of the sum are that integer's.
ROUNDING = tl.constexpr(12582912.0)
# Where s |x_i| |y_j| may be greater, steps of 1 / 32767 of it are too coarse for exp: 2^-8.
MOST_LOGIT = tl.constexpr(128.0)
PART = tl.constexpr(128)  # rows and columns that are decided together


@triton.jit
def _units(units, first, length, BLOCK: tl.constexpr):
    """The units of a block of ``length``; 0 outside."""
    at = first + tl.arange(0, BLOCK)
    return tl.load(units + at, mask=at < length, other=0.0)


@triton.jit
def in_fixed_point(
    S, units, first_row, first_col, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """A tile of products as int16: rounded to the nearest, saturated."""
    of_row = 1.0 / _units(units, first_row, M, BLOCK_M)
    of_col = 1.0 / _units(units + M, first_col, N, BLOCK_N)
    steps = S * of_row[:, None] * of_col[None, :]
    steps = tl.minimum(tl.maximum(steps, -LARGEST), LARGEST)
    return (steps + ROUNDING).to(tl.int32, bitcast=True).to(tl.int16)


@triton.jit
def out_of_fixed_point(
    fixed, units, first_row, first_col, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The products of a tile of int16; 0 outside the M rows and N columns."""
    of_row = _units(units, first_row, M, BLOCK_M)
    of_col = _units(units + M, first_col, N, BLOCK_N)
    return fixed.to(tl.float32) * (of_row[:, None] * of_col[None, :])


@triton.jit
def _most_logit(units, scale, row, col, M, N):
    """The greatest s |x_i| |y_j| of the part that begins with a row and a column."""
    of_row = _units(units, row, M, PART)
    of_col = _units(units + M, col, N, PART)
    return tl.max(of_row, 0) * tl.max(of_col, 0) * LARGEST * tl.load(scale)


@triton.jit
def is_coarse(
    units, scale, teacher_scale, first_row, first_col, own_row, own_col, M, N,
    TEACHER: tl.constexpr,
):  # fmt: skip
    """Whether 16 bits are too coarse in the part of S or of T that a tile of a chunk lies in.

    The chunk begins with ``first_row`` and ``first_col``, the tile ``own_row`` and ``own_col``
    later. Parts are PART x PART entries of the chunk, so tiles of different kernels agree.
    """
    row, col = first_row + own_row // PART * PART, first_col + own_col // PART * PART
    most = _most_logit(units, scale, row, col, M, N)
    if TEACHER:
        of_T = _most_logit(units + M + N, teacher_scale, row, col, M, N)
        most = tl.maximum(most, of_T, propagate_nan=tl.PropagateNan.ALL)
    # True of NaN too: what is multiplied again shows what is not finite.
    return (most <= MOST_LOGIT) == 0
