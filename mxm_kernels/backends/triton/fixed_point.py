"""Products of 16-bit features in 16 bits of fixed point, as they are kept for backward.

Entry (i, j) is an integer times u_i u_j with u_i = |x_i| / sqrt(32767), so the largest that it can
be, |x_i| |y_j|, is 32767. A unit for each row and each column keeps a long row from taking the
resolution of the others. A row that is not finite has a unit that is not, and decodes to NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mxm_kernels.backends.tiles import Span

LARGEST = tl.constexpr(32767.0)
ROOT = tl.constexpr(181.0193359837562)  # its square root
# 1.5 times 2^23: a float32 of that size has steps of 1, so adding rounds to the nearest integer,
# and the last 16 bits of the sum are that integer's.
ROUNDING = tl.constexpr(12582912.0)
# Where s |x_i| |y_j| may be greater, steps of 1 / 32767 of it are too coarse for exp: 2^-8.
MOST_LOGIT = tl.constexpr(128.0)
PART = tl.constexpr(128)  # rows and columns of a chunk that are decided together


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
def from_fixed_point(fixed, of_row, of_col):
    """The products of a tile of int16, from the units of its rows and columns."""
    return fixed.to(tl.float32) * (of_row[:, None] * of_col[None, :])


@triton.jit
def most_of(units, first, own, length):
    """The greatest unit of a part of the rows or columns of a chunk, times sqrt(32767).

    The product of a row's part and a column's is |x_i| |y_j| at most. The chunk begins with
    ``first``; the part is that of its row or column ``own``. NaN where one is not finite.
    """
    at = first + own // PART * PART + tl.arange(0, PART)
    unit = tl.load(units + at, mask=at < length, other=0.0)
    return (tl.max(unit, 0) + tl.sum(unit * 0.0, 0)) * ROOT


@triton.jit
def part_of(own_row, own_col, width):
    """Number of the part of a chunk, of ``width`` columns, that a tile lies in."""
    return own_row // PART * tl.cdiv(width, PART) + own_col // PART


def parts(rows: Span, cols: Span) -> int:
    """How many parts a chunk has."""
    return -(-(rows[1] - rows[0]) // PART.value) * -(-(cols[1] - cols[0]) // PART.value)
