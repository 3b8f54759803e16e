"""The sums of S over whole rows, two launches forward and two backward.

Symbols and formulas as in ``backends/row_sums.py``, which defines them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import Gradients
from mxm_kernels.backends.row_interface import SummedRows

# A program of the first kernel has all rows of its columns: few columns give more programs.
SUM = {"ROWS": 128, "COLS": 16}
TILE = {"ROWS": 16, "COLS": 128}
BLOCK = 1024


@triton.jit
def _tile(a, row, col, rows, D):
    """Features (ROWS, COLS) in float32, 0 beyond the last row and column."""
    inside = (row[:, None] < rows) & (col[None, :] < D)
    place = row.to(tl.int64)[:, None] * D + col[None, :]
    return tl.load(a + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _column_sums(a, weights, rows, D, col, WEIGHTED: tl.constexpr, ROWS: tl.constexpr):
    """Sums of the columns ``col`` of a (rows, D), in the order of its rows."""
    total = tl.zeros((col.shape[0],), tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        value = _tile(a, row, col, rows, D)
        if WEIGHTED:
            value *= tl.load(weights + row, mask=row < rows, other=0.0)[:, None]
        total += tl.sum(value, axis=0)
    return total


@triton.jit(do_not_specialize=["M", "N"])
def feature_sums_kernel(
    x,  # (M, D)
    y,  # (N, D)
    weights,  # (M + N,), not read unless WEIGHTED
    totals,  # (2, D) out
    M,
    N,
    D,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The columns of x, then those of y."""
    blocks = tl.cdiv(D, COLS)
    block = tl.program_id(0)
    col = (block % blocks) * COLS + tl.arange(0, COLS)
    if block < blocks:
        total = _column_sums(x, weights, M, D, col, WEIGHTED, ROWS)
        tl.store(totals + col, total, mask=col < D)
    else:
        total = _column_sums(y, weights + M, N, D, col, WEIGHTED, ROWS)
        tl.store(totals + D + col, total, mask=col < D)


@triton.jit
def _dots(a, total, s, out, block, rows, D, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The products of a block of the rows of a (rows, D) with ``total`` (D,), times s."""
    row = block * ROWS + tl.arange(0, ROWS)
    made = tl.zeros((ROWS,), tl.float32)
    for start in range(0, D, COLS):
        col = start + tl.arange(0, COLS)
        made += tl.sum(
            _tile(a, row, col, rows, D) * tl.load(total + col, mask=col < D, other=0.0)[None, :],
            axis=1,
        )
    tl.store(out + row, made * s, mask=row < rows)


@triton.jit(do_not_specialize=["M", "N"])
def row_sums_kernel(
    x,  # (M, D)
    y,  # (N, D)
    scale,  # ()
    totals,  # (2, D)
    row_sums,  # (M + N,) out
    M,
    N,
    D,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The rows of x, then those of y."""
    block, x_blocks, s = tl.program_id(0), tl.cdiv(M, ROWS), tl.load(scale)
    if block < x_blocks:
        _dots(x, totals + D, s, row_sums, block, M, D, ROWS, COLS)
    else:
        _dots(y, totals, s, row_sums + M, block - x_blocks, N, D, ROWS, COLS)


@triton.jit
def _add(d, total, more, grad, s, out, tile, rows, D, ROWS: tl.constexpr, COLS: tl.constexpr):
    """A tile of d (rows, D), plus s (grad total + more)."""
    across = tl.cdiv(D, COLS)
    row = (tile // across) * ROWS + tl.arange(0, ROWS)
    col = (tile % across) * COLS + tl.arange(0, COLS)
    g = tl.load(grad + row, mask=row < rows, other=0.0)[:, None]
    Y = tl.load(total + col, mask=col < D, other=0.0)[None, :]
    W = tl.load(more + col, mask=col < D, other=0.0)[None, :]
    value = _tile(d, row, col, rows, D) + s * (g * Y + W)
    place = row.to(tl.int64)[:, None] * D + col[None, :]
    inside = (row[:, None] < rows) & (col[None, :] < D)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["x_rows", "y_rows", "M", "rows"])
def row_sums_backward_kernel(
    dx,  # (x_rows, D)
    dy,  # (y_rows, D)
    ds,  # ()
    scale,  # ()
    totals,  # (2, D)
    row_sums,  # (rows,)
    grad,  # (rows,)
    weighted,  # (2, D) the features' sums with the weights ``grad``
    dx_out,  # (x_rows, D) out
    dy_out,  # (y_rows, D) out
    ds_out,  # () out
    x_rows,  # M, or 0 where x wants no gradient
    y_rows,
    M,
    rows,
    D,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of the scale, then the tiles of dx and those of dy."""
    s, across = tl.load(scale), tl.cdiv(D, COLS)
    tile, x_tiles = tl.program_id(0) - 1, tl.cdiv(x_rows, ROWS) * across
    if tile < 0:
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, rows, BLOCK):
            row = start + tl.arange(0, BLOCK)
            g = tl.load(grad + row, mask=row < rows, other=0.0)
            total += g * tl.load(row_sums + row, mask=row < rows, other=0.0)
        tl.store(ds_out, tl.load(ds) + tl.sum(total, axis=0) / s)
    elif tile < x_tiles:
        _add(dx, totals + D, weighted + D, grad, s, dx_out, tile, x_rows, D, ROWS, COLS)
    else:
        _add(dy, totals, weighted, grad + M, s, dy_out, tile - x_tiles, y_rows, D, ROWS, COLS)


def feature_sums(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """(2, D) sums of the rows of x (M, D) and of y (N, D), weighted by the (M + N,) or not."""
    D = x.shape[1]
    sums = weights.new_empty((2, D))
    feature_sums_kernel[(2 * triton.cdiv(D, SUM["COLS"]),)](
        x, y, weights, sums, len(x), len(y), D, WEIGHTED=len(weights) > 0, **SUM
    )
    return sums


def row_sums(x: Tensor, y: Tensor, scale: Tensor, sums: Tensor) -> Tensor:
    """(M + N,) sums of S over the rows, from the ``sums`` (2, D) of all features."""
    M, N = len(x), len(y)
    made = sums.new_empty(M + N)
    blocks = triton.cdiv(M, TILE["ROWS"]) + triton.cdiv(N, TILE["ROWS"])
    if blocks:
        row_sums_kernel[(blocks,)](x, y, scale, sums, made, M, N, x.shape[1], **TILE)
    return made


def row_sums_backward(
    made: Gradients, rows: SummedRows, grad: Tensor, weighted: Tensor
) -> Gradients:
    """``made`` and the gradients of the sums of the rows."""
    out = Gradients(*map(torch.empty_like, made))
    lengths = len(made.x), len(made.y)
    high = sum(triton.cdiv(length, TILE["ROWS"]) for length in lengths)
    D = rows.sums.shape[1]
    row_sums_backward_kernel[(1 + high * triton.cdiv(D, TILE["COLS"]),)](
        *made, rows.scale, rows.sums, rows.made, grad, weighted, *out,
        *lengths, rows.images, len(grad), D, **TILE, BLOCK=BLOCK,
    )  # fmt: skip
    return out
