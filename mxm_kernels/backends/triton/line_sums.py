"""The sums of dS that a backward under rules has beside dS: of its rows and columns, and times S.

``told_gradient`` writes the sums of each tile of a chunk as lines of a scratch. One launch a chunk
adds them to sums over the plane, in a fixed order, so no addition is atomic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import Problem
from mxm_kernels.backends.tiles import Span
from mxm_kernels.backends.triton.settings import Launch

Lines = tuple[Tensor, Tensor, Tensor]  # (column blocks, height), (row blocks, width), (tiles,)


@triton.jit
def _add_block(
    lines, totals, block, length, count, again, BLOCK: tl.constexpr, LINES: tl.constexpr
):
    """A block of ``totals``, and to it ``count`` lines of ``length``."""
    index = block * BLOCK + tl.arange(0, BLOCK)
    inside = index < length
    total = tl.load(totals + index, mask=inside & (again > 0), other=0.0)
    for start in range(0, count, LINES):
        line = start + tl.arange(0, LINES)
        at = (line.to(tl.int64) * length)[:, None] + index[None, :]
        known = (line < count)[:, None] & inside[None, :]
        total += tl.sum(tl.load(lines + at, mask=known, other=0.0), 0)
    tl.store(totals + index, total, mask=inside)


@triton.jit(
    do_not_specialize=[
        "height", "width", "row_blocks", "col_blocks", "tiles",
        "rows_again", "cols_again", "again",
    ]
)  # fmt: skip
def line_sums_kernel(
    lines,  # (column blocks, height), (row blocks, width), (tiles,)
    of_plane,  # () in and out
    of_rows,  # (height,) in and out
    of_cols,  # (width,) in and out
    height,
    width,
    row_blocks,
    col_blocks,
    tiles,
    rows_again,  # whether there are sums already
    cols_again,
    again,
    BLOCK: tl.constexpr,
    LINES: tl.constexpr,
):
    """The first program: the sum of the plane; the others those of the rows, then the columns."""
    program = tl.program_id(0)
    blocks = tl.cdiv(height, BLOCK)
    if program == 0:
        PART: tl.constexpr = BLOCK * LINES
        total = tl.zeros((PART,), tl.float32)
        for start in range(0, tiles, PART):
            at = start + tl.arange(0, PART)
            total += tl.load(lines[2] + at, mask=at < tiles, other=0.0)
        before = tl.load(of_plane, mask=again > 0, other=0.0)
        tl.store(of_plane, before + tl.sum(total, 0))
    elif program <= blocks:
        _add_block(lines[0], of_rows, program - 1, height, col_blocks, rows_again, BLOCK, LINES)
    else:
        block = program - 1 - blocks
        _add_block(lines[1], of_cols, block, width, row_blocks, cols_again, BLOCK, LINES)


LINES_BLOCK = {"BLOCK": 32, "LINES": 64}


class LineSums:
    """Sums over the plane: of dS S without offsets and scale, and of rows and columns of dS."""

    def __init__(self, p: Problem, of_rows: bool, of_plane: bool = True) -> None:
        """Whether the sums of rows and columns are wanted, and that of dS S."""
        self.images, self.of_rows, self.of_plane = len(p.x), of_rows, of_plane
        self.plane = p.x.new_empty((), dtype=torch.float32)
        rows = len(p.x) + len(p.y) if of_rows else 0
        self.rows = p.x.new_empty(rows, dtype=torch.float32)  # images, then texts
        self.again = False

    def lines(self, setting: Launch, rows: Span, cols: Span, partly: bool = False) -> Lines:
        """Room for the lines of a chunk; zeros where tiles are left out, ``partly``."""
        height, width = rows[1] - rows[0], cols[1] - cols[0]
        row_blocks, col_blocks = -(-height // setting.rows), -(-width // setting.cols)
        sizes = [col_blocks * height, row_blocks * width] if self.of_rows else [0, 0]
        sizes.append(row_blocks * col_blocks if self.of_plane else 0)
        room = self.plane.new_zeros if partly else self.plane.new_empty
        of_rows, of_cols, of_tiles = room(sum(sizes)).split(sizes)
        return of_rows, of_cols, of_tiles

    def add(
        self, lines: Lines, setting: Launch, rows: Span, cols: Span, *, more: bool = False
    ) -> None:
        """Add the lines of a chunk; ``more``: of a second launch over it."""
        height, width = rows[1] - rows[0], cols[1] - cols[0]
        of_rows, of_cols = self.rows[: self.images], self.rows[self.images :]
        size = LINES_BLOCK["BLOCK"]
        blocks = triton.cdiv(height, size) + triton.cdiv(width, size) if self.of_rows else 0
        line_sums_kernel[(1 + blocks,)](
            lines, self.plane, of_rows[rows[0] :], of_cols[cols[0] :], height, width,
            -(-height // setting.rows), -(-width // setting.cols), len(lines[2]),
            more or cols[0] > 0, more or rows[0] > 0, self.again, **LINES_BLOCK,
        )  # fmt: skip
        self.again = True
