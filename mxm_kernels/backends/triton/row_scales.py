"""A scale for each row: one launch to multiply by it, one in backward.

Symbols and formulas as in ``backends/row_scales.py``, which defines them. The second number of a
program says which of the given tensors it is for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.tile import positive

TILE = {"ROWS": 8, "COLS": 256}
MATRICES, SIDES = 4, 2  # how many matrices a launch takes, forward and backward


@triton.jit
def _scale(x, s, z, rows, D, stride, ROWS: tl.constexpr, COLS: tl.constexpr):
    """A tile of z (rows, D), from x (rows, D) and s (rows,), whose stride may be 0."""
    tile, across = tl.program_id(0), tl.cdiv(D, COLS)
    row = (tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tile % across * COLS + tl.arange(0, COLS)
    scale = positive(tl.load(s + row * stride, mask=row < rows, other=1.0))
    place, inside = row[:, None] * D + col[None, :], (row < rows)[:, None] & (col < D)[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * scale[:, None]
    tl.store(z + place, value.to(z.dtype.element_ty), mask=inside)


_ROWS = [f"rows{k}" for k in range(MATRICES)]


@triton.jit(do_not_specialize=_ROWS)
def scale_rows_kernel(
    x0, x1, x2, x3,  # (rows, D)
    s0, s1, s2, s3,  # (rows,)
    z0, z1, z2, z3,  # (rows, D) out
    one,  # () out
    rows0, rows1, rows2, rows3,
    D0, D1, D2, D3,
    stride0, stride1, stride2, stride3,  # of the scales
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    """Features times their scales; and 1, the scale of what carries its own."""
    which = tl.program_id(1)
    if which == 0:
        _scale(x0, s0, z0, rows0, D0, stride0, ROWS, COLS)
        if tl.program_id(0) == 0:
            tl.store(one, 1.0)
    elif which == 1:
        _scale(x1, s1, z1, rows1, D1, stride1, ROWS, COLS)
    elif which == 2:
        _scale(x2, s2, z2, rows2, D2, stride2, ROWS, COLS)
    else:
        _scale(x3, s3, z3, rows3, D3, stride3, ROWS, COLS)


@triton.jit
def _gradients(
    x, s, dz, dx, dx_out, ds_out, rows, D, stride, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """Some rows of dx_out (rows, D) and of ds_out (rows,), summed in a fixed order."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    scale = positive(tl.load(s + row * stride, mask=row < rows, other=1.0))[:, None]
    total = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, D, COLS):
        col = start + tl.arange(0, COLS)
        place, inside = row[:, None] * D + col[None, :], (row < rows)[:, None] & (col < D)[None, :]
        by_z = tl.load(dz + place, mask=inside, other=0.0).to(tl.float32)
        by_x = tl.load(dx + place, mask=inside, other=0.0).to(tl.float32) + by_z * scale
        tl.store(dx_out + place, by_x.to(dx_out.dtype.element_ty), mask=inside)
        total += by_z * tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(ds_out + row, tl.sum(total, axis=1), mask=row < rows)


@triton.jit(do_not_specialize=_ROWS[:SIDES])
def scale_rows_backward_kernel(
    x0, x1,  # (rows, D)
    s0, s1,  # (rows,)
    dz0, dz1,  # (rows, D)
    dx0, dx1,  # (rows, D)
    dx_out0, dx_out1,  # (rows, D)
    ds_out0, ds_out1,  # (rows,)
    rows0, rows1,
    D0, D1,
    stride0, stride1,  # of the scales
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    """The gradients by features and scales of both sides, each row by one program."""
    if tl.program_id(1) == 0:
        _gradients(x0, s0, dz0, dx0, dx_out0, ds_out0, rows0, D0, stride0, ROWS, COLS)
    else:
        _gradients(x1, s1, dz1, dx1, dx_out1, ds_out1, rows1, D1, stride1, ROWS, COLS)


def _slots(tensors: Sequence[Tensor], most: int) -> list[Tensor]:
    """As many tensors as a kernel takes; the first stands for those that there are not."""
    return [*tensors, *[tensors[0]] * (most - len(tensors))]


def _sizes(numbers: Sequence[int], most: int) -> list[int]:
    """As many sizes as a kernel takes, 0 for what there is not."""
    return [*numbers, *[0] * (most - len(numbers))]


def _shapes(features: Sequence[Tensor], scales: Sequence[Tensor], most: int) -> list[int]:
    """Rows, D and strides of the scales, as a kernel takes them."""
    rows, depths = ([f.shape[k] for f in features] for k in (0, 1))
    strides = [s.stride(0) for s in scales]
    return [*_sizes(rows, most), *_sizes(depths, most), *_sizes(strides, most)]


def _stored(features: Tensor) -> Tensor:
    """Room for a kernel's numbers, which are yet to be rounded where the interpreter does not."""
    return torch.empty_like(features, dtype=launch.workspace_dtype(features.dtype, features.device))


def scale_rows(features: Sequence[Tensor], scales: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """One launch for up to 4 matrices; and 1 (), the scale of what carries its own."""
    x = [f.contiguous() for f in features]
    z, one = [_stored(f) for f in x], scales[0].new_empty(())
    tiles = [
        triton.cdiv(f.shape[0], TILE["ROWS"]) * triton.cdiv(f.shape[1], TILE["COLS"]) for f in x
    ]
    scale_rows_kernel[(max(*tiles, 1), len(x))](
        *_slots(x, MATRICES), *_slots(scales, MATRICES), *_slots(z, MATRICES), one,
        *_shapes(x, scales, MATRICES), **TILE,
    )  # fmt: skip
    return [made.to(f.dtype) for made, f in zip(z, x, strict=True)], one


def scale_rows_backward(
    features: Sequence[Tensor],
    scales: Sequence[Tensor],
    dz: Sequence[Tensor],
    dx: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """One launch for up to 2 matrices."""
    x, dz, dx = ([f.contiguous() for f in given] for given in (features, dz, dx))
    by_x, by_s = [_stored(f) for f in x], [s.new_empty(s.shape) for s in scales]
    blocks = [triton.cdiv(f.shape[0], TILE["ROWS"]) for f in x]
    matrices = [_slots(given, SIDES) for given in (x, scales, dz, dx, by_x, by_s)]
    scale_rows_backward_kernel[(max(*blocks, 1), len(x))](
        *[v for pair in matrices for v in pair], *_shapes(x, scales, SIDES), **TILE
    )
    return [made.to(f.dtype) for made, f in zip(by_x, x, strict=True)], by_s
