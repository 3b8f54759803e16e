"""The M x N plane in tiles: their sizes, their positive pairs, their memory, kept S and T.

The tiles of a batch have one size, whatever the budget: tiles of another size would sum to other
bits. A call takes at least the memory of three tiles (four for diagnostics) and of the features of
one tile, widened or scaled. S and T are kept beside them where the budget has room. Rules about
pairs take more tiles of memory; these are smaller, so that the default budget holds them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mxm_kernels.backends import fixed_point
from mxm_kernels.backends.budget import (
    kept_bytes,
    positives_of,
    room_of,
    stride_with_positives,
    too_small,
)
from mxm_kernels.backends.interface import Memory, Problem, Statistics
from mxm_kernels.backends.tiles import Span, split

TILE = 8 << 20  # bytes of a tile, at most
TILE_COLUMNS = 8192
FEATURES = 15 << 20  # bytes of the features of its rows, and of its columns, at most
LEAST_SIDE = 32  # rows or columns, however long they are
TILES = 4
TOLD_TILES = 9  # where rules tell of pairs: masks, normalisers and factors of a side too; smaller


class Tile(NamedTuple):
    """A part of the plane."""

    rows: Span
    cols: Span
    pairs: Tensor  # slots of the positive pairs inside the tile
    places: Tensor  # where they are in the flattened tile
    hidden: Tensor  # places of the tile that are no negatives, whose groups are the same

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.rows[1] - self.rows[0], self.cols[1] - self.cols[0]


def size_of(problem: Problem) -> tuple[int, int]:
    """Rows and columns of a tile, at most."""
    rows, cols = problem.x.shape[0], problem.y.shape[0]
    itemsize = problem.accumulator.itemsize
    side = max(LEAST_SIDE, FEATURES // (itemsize * _depth(problem)))
    widest = min(TILE_COLUMNS, side)
    width = cols if cols <= widest else -(-cols // -(-cols // widest))
    tile = TILE * TILES // tiles_in_memory(problem)
    height = max(1, min(tile // (itemsize * width), side))
    return rows if rows <= height else height, width


def tiles_in_memory(problem: Problem) -> int:
    """How many tiles a call holds at once."""
    return TOLD_TILES if problem.told else TILES


def _depth(problem: Problem) -> int:
    """Numbers in the longest row of features."""
    return max(1, *(x.shape[1] for x, _ in problem.feature_pairs))


def workspace_bytes(problem: Problem) -> int:
    """Bytes of the workspace of a call, without S and T that it keeps for backward."""
    height, width = size_of(problem)
    numbers = tiles_in_memory(problem) * height * width + (height + width) * _depth(problem)
    return numbers * problem.accumulator.itemsize


def row_stride(problem: Problem) -> int:
    """Numbers for a row of what is kept: of 16 bits an even one, since floats follow."""
    cols = problem.y.shape[0]
    return cols + cols % 2 if problem.kept_dtype == torch.int16 else cols


def kept_stride(problem: Problem, memory: Memory) -> int | None:
    """The stride of the tensor that forward keeps; None where backward multiplies again."""
    if not memory.keep or memory.budget == 0 or problem.told:
        return None
    stride = stride_with_positives(problem, row_stride(problem), 2)
    fits = kept_bytes(problem, stride) + workspace_bytes(problem) <= memory.budget
    return stride if fits else None


def tiles_of(problem: Problem) -> Iterator[Tile]:
    """Tiles in row-block order, each with its positive pairs."""
    height, width = size_of(problem)
    columns = list(split(problem.y.shape[0], width))
    groups = problem.image_groups, problem.text_groups
    every_pair = _same_groups(problem) == problem.pairs
    for r0, r1 in split(problem.x.shape[0], height):
        first, last = problem.offsets[[r0, r1]].tolist()
        texts = problem.pair_texts[first:last]
        places = problem.owners[first:last] - r0
        for c0, c1 in columns:
            inside = ((texts >= c0) & (texts < c1)).nonzero().squeeze(1)
            place = places[inside] * (c1 - c0) + texts[inside] - c0
            hidden = place
            if not every_pair:
                same = groups[0][r0:r1, None] == groups[1][c0:c1]
                hidden = same.view(-1).nonzero().squeeze(1)
            yield Tile((r0, r1), (c0, c1), inside + first, place, hidden)


def _same_groups(problem: Problem) -> int:
    """How many pairs of rows have one group: more than P where a row is no positive of itself."""
    images, texts = (g.long() for g in (problem.image_groups, problem.text_groups))
    counts = torch.bincount(images, minlength=int(texts.max()) + 1)
    return int(counts[texts].sum())


class Workspace:
    """Tiles of memory, cut to the shape of the tile at hand, and its two products.

    Raises:
        ValueError: the budget does not hold them.
    """

    def __init__(self, problem: Problem, memory: Memory) -> None:
        least = workspace_bytes(problem)
        if least > room_of(memory):
            what = "tiles of {:,} x {:,} numbers".format(*size_of(problem))
            raise too_small(memory, least, what)
        self.problem, self.buffers = problem, {}  # type: ignore[var-annotated]
        height, width = size_of(problem)
        self.numbers = height * width
        self.like = problem.x.new_empty(0, dtype=problem.accumulator)

    def take(self, index: int, tile: Tile) -> Tensor:
        """Buffer ``index`` in the tile's shape, uninitialised."""
        if index not in self.buffers:
            self.buffers[index] = self.like.new_empty(self.numbers)
        height, width = tile.shape
        return self.buffers[index][: height * width].view(height, width)

    def student(self, tile: Tile, out: Tensor | None = None) -> Tensor:
        """S of a tile."""
        p = self.problem
        return self._logits(self.take(0, tile) if out is None else out, tile, p.x, p.y, p.scale)

    def teacher(self, tile: Tile, out: Tensor | None = None) -> Tensor:
        """T of a tile."""
        p = self.problem
        assert p.teacher_x is not None and p.teacher_y is not None and p.teacher_scale is not None
        out = self.take(1, tile) if out is None else out
        return self._logits(out, tile, p.teacher_x, p.teacher_y, p.teacher_scale)

    def teacher_products(self, tile: Tile) -> Tensor:
        """<X_i, Y_j> of a tile, by which the filter decides."""
        p = self.problem
        assert p.teacher_x is not None and p.teacher_y is not None
        return self._logits(self.take(1, tile), tile, p.teacher_x, p.teacher_y)

    def _logits(
        self, out: Tensor, tile: Tile, x: Tensor, y: Tensor, scale: Tensor | None = None
    ) -> Tensor:
        dtype = self.problem.accumulator
        a = x[slice(*tile.rows)].to(dtype)
        a = a if scale is None else a * scale
        b = y[slice(*tile.cols)].to(dtype)
        return torch.mm(a, b.T, out=out)


class Kept:
    """S and T as they are kept for backward, tile after tile: a tile lies in one piece.

    In the accumulator's dtype the logits stay where they were multiplied, with their scale.
    Products of 16-bit features are in fixed point, except those of the positives. ``Kept`` is false
    where nothing is kept, and where the fixed point is too coarse.
    """

    def __init__(self, problem: Problem, made: Statistics) -> None:
        self.problem, self.kept, self.units = problem, made.kept, made.units
        self.fixed = made.kept.dtype == torch.int16
        self.there = made.kept.numel() > 0
        if self.there and self.fixed:
            self.there = not fixed_point.too_coarse(problem, made.units)
            scales = problem.scale, problem.teacher_scale
            self.scales = [s for s in scales if s is not None]
            self.positives = [made.positives[: problem.pairs]]
            if problem.has_teacher:
                self.positives.append(positives_of(made.kept, problem, row_stride(problem)))

    def __bool__(self) -> bool:
        return self.there

    def place(self, matrix: int, tile: Tile) -> Tensor | None:
        """Where the logits of a tile of S (0) or T (1) are multiplied; None: in a workspace."""
        return self._at(matrix, tile) if self.there and not self.fixed else None

    def store(self, matrix: int, tile: Tile, logits: Tensor, scratch: Tensor) -> None:
        """Keep logits in fixed point."""
        if not (self.there and self.fixed):
            return
        rows, cols = self._units(matrix, tile)
        rows = fixed_point.inverse(rows) / self.scales[matrix]
        torch.mul(logits, rows[:, None], out=scratch).mul_(fixed_point.inverse(cols))
        scratch.round_().clamp_(-fixed_point.MOST, fixed_point.MOST)
        self._at(matrix, tile).copy_(scratch)
        if matrix == 1:
            self.positives[1][tile.pairs] = logits.view(-1)[tile.places]

    def load(self, matrix: int, tile: Tile, out: Tensor) -> Tensor:
        """The logits of a tile, not to be written to; in ``out`` where they are in fixed point."""
        found = self._at(matrix, tile)
        if not self.fixed:
            return found
        rows, cols = self._units(matrix, tile)
        out.copy_(found).mul_((rows * self.scales[matrix])[:, None]).mul_(cols)
        out.view(-1)[tile.places] = self.positives[matrix][tile.pairs]
        return out

    def _at(self, matrix: int, tile: Tile) -> Tensor:
        height, width = tile.shape
        first = tile.rows[0] * len(self.problem.y) + height * tile.cols[0]
        return self.kept[matrix].view(-1)[first : first + height * width].view(tile.shape)

    def _units(self, matrix: int, tile: Tile) -> tuple[Tensor, Tensor]:
        rows, cols = self.problem.halves(self.units[matrix])
        return rows[slice(*tile.rows)], cols[slice(*tile.cols)]


def prepare_kept(problem: Problem, made: Statistics) -> None:
    """The units of what is kept in 16 bits; where nothing is written, zeros."""
    if made.kept.numel() and made.kept.dtype == torch.int16:
        made.units.copy_(fixed_point.units_of(problem))
        unwritten = 0 if fixed_point.too_coarse(problem, made.units) else len(problem.x)
        # Zeros, for the same bits from the same features.
        made.kept.view(len(made.kept), -1)[:, unwritten * len(problem.y) :].zero_()
