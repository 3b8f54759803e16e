"""How the plane is cut into tiles, and whether S and T are kept, from the budget and the sizes.

The results of forward do not hang on it: it sums strips of 32 rows by chunks of 512 columns, in
their order, and every edge of a tile is one of both. torch.compile calls these functions with
symbolic sizes.

The least workspace is that of one tile of 256 rows, or more where it would have less than 2^17
numbers: products of fewer rows may have other bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch

from mxm_kernels.backends.budget import (
    kept_bytes,
    room_of,
    stride_with_positives,
    too_small,
    widened_depth,
)
from mxm_kernels.backends.interface import Memory, Problem
from mxm_kernels.backends.tiles import Span

STRIP = 32  # rows that forward sums at once
CHUNK = 512  # columns
TILE = 5 << 20  # floats in a tile: two tiles are 40 MiB
KEPT_TILE = 10 << 20  # where there is room: fewer products, of more rows, are faster
TILE_COLUMNS = 9 * CHUNK  # at D = 1024 their widened features are 18 MiB
PAD = 16  # floats in the widest vector of the sweep
LINE = 32  # 16-bit numbers in a line of the cache
LEAST_ROWS, LEAST_NUMBERS = 256, 1 << 17
KEPT_ROWS = 512  # of a tile of dS: its products would be slow with fewer, for all that is kept


class Tiling(NamedTuple):
    """The largest tile."""

    height: int  # rows
    piece: int  # columns whose features are widened at a time


def blocks(length: int, most: int, unit: int) -> Iterator[Span]:
    """Cut ``range(length)`` into the fewest spans of at most ``most``, edges multiples of ``unit``.

    ``most`` is a multiple of it too, unless it is ``length``.
    """
    pieces = -(-length // most)
    edges = [min(length, -(-length * k // (pieces * unit)) * unit) for k in range(pieces + 1)]
    return pairwise(edges)


def columns_of(problem: Problem) -> list[Span]:
    """The columns of the tiles, whatever the budget."""
    return list(blocks(problem.y.shape[0], TILE_COLUMNS, CHUNK))


def stride_of(width: int, dtype: torch.dtype = torch.float32) -> int:
    """Numbers from row to row: whole vectors, and not a multiple of 4 KiB.

    Rows a multiple of 4 KiB apart share the sets of the L1 cache.
    """
    unit = LINE if dtype == torch.int16 else PAD
    stride = -(-width // unit) * unit
    return stride + unit if stride * dtype.itemsize % 4096 == 0 else stride


def row_stride(problem: Problem) -> int:
    """Numbers from row to row of what is kept."""
    return stride_of(problem.y.shape[0], problem.kept_dtype)


def kept_stride(problem: Problem, memory: Memory) -> int | None:
    """The stride of the tensor that forward keeps; None where backward multiplies again."""
    if not memory.keep or memory.budget == 0:
        return None
    if problem.filters and problem.kept_dtype == torch.int16:
        return None  # backward would compare other products with the thresholds
    stride = stride_with_positives(problem, row_stride(problem), LINE)
    left = memory.budget - kept_bytes(problem, stride)
    least = _bytes(problem, _tiles(problem, keeps=True), max(KEPT_ROWS, _least_rows(problem)))
    return stride if left >= least else None


def tiles_that_fit(problem: Problem, memory: Memory, keeps: bool = False) -> Tiling:
    """The tiles of a call that fits into the budget.

    Raises:
        ValueError: the budget does not hold the least.
    """
    room = room_of(memory)
    if keeps:
        room -= kept_bytes(problem, stride_with_positives(problem, row_stride(problem), LINE))
    tiles, least = _tiles(problem, keeps), _least_rows(problem)
    if _bytes(problem, tiles, least) > room:
        what = f"one tile of {least:,} x {_width(problem):,} numbers"
        raise too_small(memory, _bytes(problem, tiles, least), what)
    in_row, width, depth = _row_bytes(problem, tiles), _width(problem), widened_depth(problem)
    piece = width
    if depth and least * in_row + 4 * width * depth > room:
        piece = max(1, (room - least * in_row) // (4 * depth) // CHUNK) * CHUNK
    fits = (room - 4 * piece * depth) // in_row // STRIP * STRIP
    most = (KEPT_TILE if keeps else TILE) // stride_of(width) // STRIP * STRIP
    return Tiling(max(least, min(fits, most)), piece)


def rows_of(problem: Problem, height: int) -> list[Span]:
    """The rows of the tiles: blocks of about one height, the last may be lower by 32 rows each."""
    length = problem.x.shape[0]
    return list(blocks(length, height, STRIP)) if height < length else [(0, length)]


def _tiles(problem: Problem, keeps: bool) -> int:
    """Tiles in the workspace: float32 products that are kept are multiplied where they stay."""
    return 1 if keeps and problem.kept_dtype != torch.int16 else problem.matrices


def _width(problem: Problem) -> int:
    """Columns of the widest tile."""
    cols = problem.y.shape[0]
    if cols <= TILE_COLUMNS:
        return cols
    return -(-cols // (-(-cols // TILE_COLUMNS) * CHUNK)) * CHUNK


def _least_rows(problem: Problem) -> int:
    """Rows of the lowest tile, a multiple of 32 or all."""
    rows, stride = problem.x.shape[0], stride_of(_width(problem))
    least = max(LEAST_ROWS, LEAST_NUMBERS // stride // STRIP * STRIP)
    return rows if rows <= least else least


def _row_bytes(problem: Problem, tiles: int) -> int:
    """Bytes that a row of a tile takes: products, sums of its strip, widened features."""
    width = _width(problem)
    parts = 13 if problem.told else 9 if problem.matrices == 2 else 3
    sums = parts * 4 * (width + PAD) // STRIP
    return 4 * tiles * stride_of(width) + sums + 1 + 4 * widened_depth(problem)


def _bytes(problem: Problem, tiles: int, height: int) -> int:
    """The least bytes of tiles of that height, or of all rows: features widened bit by bit."""
    rows = problem.x.shape[0]
    if rows < height:
        height = rows
    piece = min(_width(problem), CHUNK)
    return height * _row_bytes(problem, tiles) + 4 * piece * widened_depth(problem)
