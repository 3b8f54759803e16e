"""The matrix of a mean target: a product, and two launches over its tiles.

The first sums 1 + <a_i, b_j> over the rows and the columns of each tile. The second adds up the
sums of the tiles beside and below it, in their order, and writes K over the products.
``backends/target_matrix.py`` defines K.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

TILE = {"ROWS": 64, "COLS": 64}
PARTS = 16  # tiles whose sums are read at a time


@triton.jit
def _tile(M, N, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The place of a program's tile among the tiles, its rows and its columns."""
    across = tl.cdiv(N, COLS)
    down, right = tl.program_id(0) // across, tl.program_id(0) % across
    row = down.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = right.to(tl.int64) * COLS + tl.arange(0, COLS)
    return down, right, row, col


@triton.jit(do_not_specialize=["M", "N"])
def weight_sums_kernel(
    products,  # (M, N)
    row_sums,  # (tiles across, M) out
    col_sums,  # (tiles down, N) out
    M,
    N,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The sums of w over the rows and the columns of a tile."""
    down, right, row, col = _tile(M, N, ROWS, COLS)
    inside = (row < M)[:, None] & (col < N)[None, :]
    w = 1.0 + tl.load(products + row[:, None] * N + col[None, :], mask=inside, other=-1.0)
    tl.store(row_sums + right.to(tl.int64) * M + row, tl.sum(w, 1), mask=row < M)
    tl.store(col_sums + down.to(tl.int64) * N + col, tl.sum(w, 0), mask=col < N)


@triton.jit
def _shares(factors, sums, at, length, parts, SIZE: tl.constexpr, PARTS: tl.constexpr):
    """The factors (SIZE,) over the totals of ``sums`` (parts, length), 0 where one is 0."""
    inside = at < length
    total = tl.zeros((SIZE,), tl.float32)
    for first in range(0, parts, PARTS):
        part = (first + tl.arange(0, PARTS)).to(tl.int64)
        here = (part < parts)[:, None] & inside[None, :]
        found = tl.load(sums + part[:, None] * length + at[None, :], mask=here, other=0.0)
        total += tl.sum(found, 0)
    factor = tl.load(factors + at, mask=inside, other=0.0)
    none = total == 0.0
    return tl.where(none, 0.0, factor / tl.where(none, 1.0, total))


@triton.jit(do_not_specialize=["M", "N"])
def target_matrix_kernel(
    products,  # (M, N), K out
    row_sums,  # (tiles across, M)
    col_sums,  # (tiles down, N)
    factors,  # (M + N,)
    M,
    N,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A tile of K in place of the products."""
    _, _, row, col = _tile(M, N, ROWS, COLS)
    of_rows = _shares(factors, row_sums, row, M, tl.cdiv(N, COLS), ROWS, PARTS)
    of_cols = _shares(factors + M, col_sums, col, N, tl.cdiv(M, ROWS), COLS, PARTS)
    inside = (row < M)[:, None] & (col < N)[None, :]
    place = products + row[:, None] * N + col[None, :]
    w = 1.0 + tl.load(place, mask=inside, other=-1.0)
    tl.store(place, w * (of_rows[:, None] + of_cols[None, :]), mask=inside)


def target_matrix(a: Tensor, b: Tensor, factors: Tensor) -> Tensor:
    """(M, N) K."""
    products = a @ b.T
    M, N = products.shape
    down, across = triton.cdiv(M, TILE["ROWS"]), triton.cdiv(N, TILE["COLS"])
    row_sums, col_sums = products.new_empty((across, M)), products.new_empty((down, N))
    weight_sums_kernel[(down * across,)](products, row_sums, col_sums, M, N, **TILE)
    target_matrix_kernel[(down * across,)](
        products, row_sums, col_sums, factors, M, N, PARTS=PARTS, **TILE
    )
    return products
