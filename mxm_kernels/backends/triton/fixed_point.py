"""Products of 16-bit features in 16 bits of fixed point, as they are kept for backward.

Entry (i, j) is an integer times u_i u_j with u_i = |x_i| / sqrt(32767), so the largest that it can
be, |x_i| |y_j|, is 32767. A unit for each row and each column keeps a long row from taking the
resolution of the others. A row that is not finite has a unit that is not, and decodes to NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import Problem

LARGEST = tl.constexpr(32767.0)
# 1.5 times 2^23: a float32 of that size has steps of 1, so adding rounds to the nearest integer,
# and the last 16 bits of the sum are that integer's.
ROUNDING = tl.constexpr(12582912.0)
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
def from_fixed_point(fixed, of_row, of_col):
    """The products of a tile of int16, from the units of its rows and columns."""
    return fixed.to(tl.float32) * (of_row[:, None] * of_col[None, :])


@triton.jit(do_not_specialize=["M", "N"])
def tops_kernel(
    units,  # (1 or 2, M + N)
    tops,  # (1 or 2, parts of M + parts of N) out
    M,
    N,
    PART: tl.constexpr,
):
    """The greatest |a_i| / sqrt(32767) of every part of the rows; NaN where one is not finite."""
    part, matrix = tl.program_id(0), tl.program_id(1)
    row_parts = tl.cdiv(M, PART)
    of_rows = part < row_parts
    length = tl.where(of_rows, M, N)
    units += matrix * (M + N) + tl.where(of_rows, 0, M)
    at = tl.where(of_rows, part, part - row_parts) * PART + tl.arange(0, PART)
    unit = tl.load(units + at, mask=at < length, other=0.0)
    top = tl.max(unit, 0) + tl.sum(unit * 0.0, 0)
    tl.store(tops + matrix * tl.num_programs(0) + part, top)


def tops_of(p: Problem, units: Tensor) -> Tensor:
    """(1 or 2, parts) the greatest units of PART images or texts each."""
    M, N = len(p.x), len(p.y)
    parts = triton.cdiv(M, PART.value) + triton.cdiv(N, PART.value)
    tops = units.new_empty((p.matrices, parts))
    tops_kernel[(parts, p.matrices)](units, tops, M, N, PART=PART.value, num_warps=1)
    return tops


@triton.jit
def _most(tops, row, col, M):
    """|x_i| |y_j| at most, of the part that an entry lies in."""
    return tl.load(tops + row // PART) * tl.load(tops + tl.cdiv(M, PART) + col // PART) * LARGEST


@triton.jit
def is_fine(
    tops, scale, teacher_scale, row, col, M, N, TEACHER: tl.constexpr, MOST: tl.constexpr
):  # fmt: skip
    """Whether 16 bits are fine enough in the part of S and T, PART x PART, that a tile lies in.

    They are where s |x_i| |y_j| is MOST at most.

    Chunks and tiles begin where no tile lies in two parts. False of NaN: what is multiplied again
    shows what is not finite.
    """
    fine = _most(tops, row, col, M) * tl.load(scale) <= MOST
    if TEACHER:
        of_T = tops + tl.cdiv(M, PART) + tl.cdiv(N, PART)
        fine = fine & (_most(of_T, row, col, M) * tl.load(teacher_scale) <= MOST)
    return fine
