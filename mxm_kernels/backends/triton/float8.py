"""A teacher rounded to float8 in one launch; ``backends/float8.py`` defines its numbers.

The type is made of its bits, since neither sm_80 nor the interpreter knows it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.float8 import FLOAT8
from mxm_kernels.backends.triton.unit import power_of_two

TILE = {"ROWS": 16, "COLS": 128}
_LEAST = tl.constexpr(torch.finfo(torch.float32).tiny)  # of the folded scale
_MOST = tl.constexpr(torch.finfo(torch.float32).max)


@triton.jit
def _power(largest):
    """The power of two that moves the largest magnitude of a matrix to 224 ... 448."""
    bits = largest.to(tl.int32, bitcast=True)
    # The exponent has a bias of 127; a mantissa above 1.75 would end above 448.
    power = 135 - (bits >> 23) - ((bits & 0x7FFFFF) > 0x600000).to(tl.int32)
    return tl.where(bits == 0, 9, tl.minimum(power, 126))


@triton.jit
def _widened(value):
    """Features as float32; bfloat16 by its bits, since the interpreter misreads subnormal ones."""
    if value.dtype == tl.bfloat16:
        value = (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return value.to(tl.float32)


@triton.jit
def _float8(value):
    """The bytes of float32 numbers in float8, ties to even; none may exceed 448."""
    bits = value.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # Float8 keeps 20 bits less, and its exponent has a bias of 7 instead of 127.
    odd = (magnitude >> 20) & 1
    byte = (magnitude - ((120 << 23) - 0x7FFFF) + odd) >> 20
    # Below 2^-6 its steps are 2^-9, as are those of float32 from 2^14 on.
    small = (tl.abs(value) + 16384.0).to(tl.int32, bitcast=True) - (141 << 23)
    byte = tl.where(magnitude < (121 << 23), small, byte)
    return (byte | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _round(a, out, tile, rows, D, stride, step, power, ROWS: tl.constexpr, COLS: tl.constexpr):
    """A tile of a (rows, D), whose strides are ``stride`` and ``step``, times 2^power in float8."""
    across = tl.cdiv(D, COLS)
    row = ((tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    col = ((tile % across).to(tl.int64) * COLS + tl.arange(0, COLS))[None, :]
    inside = (row < rows) & (col < D)
    value = tl.load(a + row * stride + col * step, mask=inside, other=0.0)
    value = _float8(_widened(value) * power_of_two(power))
    tl.store(out + row * D + col, value, mask=inside)


@triton.jit(do_not_specialize=["M", "N"])
def float8_teacher_kernel(
    a,  # (M, D)
    b,  # (N, D)
    t,  # ()
    largest,  # (2,)
    a_out,  # (M, D) out, bytes
    b_out,  # (N, D) out, bytes
    t_out,  # () out
    M,
    N,
    D,
    a_stride,  # from row to row
    a_step,  # from column to column
    b_stride,
    b_step,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The tiles of a, then those of b, then the scale."""
    tile, across = tl.program_id(0), tl.cdiv(D, COLS)
    a_tiles, b_tiles = tl.cdiv(M, ROWS) * across, tl.cdiv(N, ROWS) * across
    a_largest, b_largest = tl.load(largest), tl.load(largest + 1)
    p, q = _power(a_largest), _power(b_largest)
    if tile < a_tiles:
        _round(a, a_out, tile, M, D, a_stride, a_step, p, ROWS, COLS)
    elif tile < a_tiles + b_tiles:
        _round(b, b_out, tile - a_tiles, N, D, b_stride, b_step, q, ROWS, COLS)
    else:
        scale = tl.load(t)
        # In float64, since the power may be as large as t is small, or the other way.
        power = ((1023 - p - q).to(tl.int64) << 52).to(tl.float64, bitcast=True)
        folded = tl.minimum(tl.maximum(scale.to(tl.float64) * power, _LEAST), _MOST)
        sound = (a_largest <= _MOST) & (b_largest <= _MOST) & (scale > 0)
        tl.store(t_out, tl.where(sound, folded.to(tl.float32), float("nan")))


def float8_teacher(
    a: Tensor, b: Tensor, t: Tensor, largest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One launch for both matrices and the scale."""
    assert t.dtype == torch.float32, "the backend takes no float64"
    (M, D), N = a.shape, b.shape[0]
    rounded = [f.new_empty(f.shape, dtype=torch.uint8) for f in (a, b)]
    folded = torch.empty_like(t)
    high = sum(triton.cdiv(rows, TILE["ROWS"]) for rows in (M, N))
    tiles = high * triton.cdiv(D, TILE["COLS"])
    float8_teacher_kernel[(tiles + 1,)](
        a, b, t, largest, *rounded, folded, M, N, D, *a.stride(), *b.stride(), **TILE
    )
    return rounded[0].view(FLOAT8), rounded[1].view(FLOAT8), folded
