"""Chunks of dS: how the M x N plane is cut so that a chunk fits the workspace.

A chunk (height x width) is a factor of two products: a share of dX (height x D) and one of dY
(width x D). Both are added to float32 sums, unless the chunk has all columns or all rows. R x C
chunks add (R - 1) N + (C - 1) M rows of D numbers, which is least where chunks are square; and a
product of few rows leaves multiprocessors idle: 2,048 x 65,536 at D 768 gives dX 48 tiles of
128 x 256, where an H100 has 132 multiprocessors.
"""

from __future__ import annotations

from math import isqrt

from mxm_kernels.backends.tiles import Span, split

LEAST_ROWS, MOST_ROWS = 8192, 16384  # of a chunk, where the matrix and the workspace have them
ALIGNMENT = 128  # rows and columns: whole cache lines, and whole tiles of any setting


def padded(width: int) -> int:
    """Columns of the workspace for ``width`` columns of dS."""
    return _ceil(width, ALIGNMENT) * ALIGNMENT


def spans(length: int, most: int) -> list[Span]:
    """Cut ``range(length)`` into the fewest spans of at most ``most``, equal but for ALIGNMENT.

    Every span but the last ends at a multiple of ALIGNMENT, if ``most`` is no less than that.
    """
    if length <= most:
        return [(0, length)]
    unit = min(ALIGNMENT, most)
    blocks = split(_ceil(length, unit), most // unit)
    return [(first * unit, min(last * unit, length)) for first, last in blocks]


def chunk_shape(rows: int, cols: int, itemsize: int, workspace: int) -> tuple[int, int]:
    """Height and width of the largest chunk of a ``rows`` x ``cols`` matrix; ``spans`` cuts it.

    A chunk takes height x padded(width) numbers of ``itemsize`` bytes, at most ``workspace`` bytes
    in all, but never less than a row of ALIGNMENT numbers.
    """
    numbers = max(workspace // itemsize, ALIGNMENT)
    if rows * padded(cols) <= numbers:
        return rows, cols
    tallest = min(MOST_ROWS, numbers // ALIGNMENT)
    unit = min(ALIGNMENT, tallest)  # of rows; a tiny workspace has no room for whole blocks
    least = min(LEAST_ROWS, isqrt(numbers))

    def cut(row_chunks: int) -> tuple[int, int]:
        height = _longest(rows, row_chunks, unit)
        widest = numbers // height // ALIGNMENT * ALIGNMENT
        return height, _longest(cols, _ceil(cols, widest), ALIGNMENT)

    def cost(shape: tuple[int, int]) -> tuple[int, int]:
        height, width = shape
        added = (_ceil(rows, height) - 1) * cols + (_ceil(cols, width) - 1) * rows
        return added, abs(height - width)

    fewest = _ceil(rows, tallest // unit * unit)
    return min(map(cut, range(fewest, max(fewest, rows // least) + 1)), key=cost)


def _ceil(length: int, part: int) -> int:
    """How many parts cover ``length``."""
    return -(-length // part)


def _longest(length: int, pieces: int, unit: int) -> int:
    """The longest of ``pieces`` spans of whole units, as equal as can be."""
    return min(length, _ceil(_ceil(length, unit), pieces) * unit)
