"""The walk over the M x N plane in tiles, and the gradients that come of it.

torch.mm multiplies features into a tile, the extension sweeps over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mxm_kernels.backends import fixed_point
from mxm_kernels.backends.budget import positives_of
from mxm_kernels.backends.interface import Gradients, Needs, Problem, Statistics
from mxm_kernels.backends.native.extension import cpp, features_of
from mxm_kernels.backends.native.tiling import Tiling, columns_of, row_stride, rows_of, stride_of
from mxm_kernels.backends.tiles import GradientSum, Span
from mxm_kernels.backends.units import multiply

LARGE = 8 << 20  # bytes from which memory asks for large pages


class Tile(NamedTuple):
    """A part of the plane with its products, not yet scaled."""

    rows: Span
    cols: Span
    S: Tensor  # (h, w), a view
    T: Tensor | None

    @property
    def addresses(self) -> tuple[int, ...]:
        """The tile as the extension takes it."""
        teacher = 0 if self.T is None else self.T.data_ptr()
        return self.S.data_ptr(), teacher, self.S.stride(0), *self.place

    @property
    def place(self) -> tuple[int, ...]:
        """The place of the tile: first row, rows, first column, columns."""
        (r0, r1), (c0, c1) = self.rows, self.cols
        return r0, r1 - r0, c0, c1 - c0


class Plane:
    """The M x N plane cut into tiles.

    A tile is a part of ``kept`` (1 or 2, M, stride), float32, where that is given, else of a
    workspace of ``matrices`` tiles, by default one for S and one for T.
    """

    def __init__(
        self,
        problem: Problem,
        tiling: Tiling,
        kept: Tensor | None = None,
        matrices: int | None = None,
    ) -> None:
        self.problem, self.tiling, self.kept = problem, tiling, kept
        self.columns, self.rows = columns_of(problem), rows_of(problem, tiling.height)
        if kept is None:
            width, height = (max(hi - lo for lo, hi in s) for s in (self.columns, self.rows))
            shape = (matrices or problem.matrices, height, stride_of(width))
            self.workspace = problem.x.new_empty(shape, dtype=torch.float32)
            in_large_pages(self.workspace)

    def spans(self) -> Iterator[tuple[Span, Span]]:
        """Rows and columns of the tiles, in row-block order."""
        for rows in self.rows:
            for cols in self.columns:
                yield rows, cols

    def at(self, matrix: int, rows: Span, cols: Span) -> Tensor:
        """The memory of a tile of S (0) or T (1)."""
        if self.kept is not None:
            return self.kept[matrix, slice(*rows), slice(*cols)]
        return self.workspace[matrix, : rows[1] - rows[0], : cols[1] - cols[0]]

    def multiplied(self) -> Iterator[Tile]:
        """The tiles, each with S and T multiplied out."""
        pairs = self.problem.feature_pairs
        for rows, cols in self.spans():
            made = [self.at(matrix, rows, cols) for matrix in range(len(pairs))]
            for out, (x, y) in zip(made, pairs, strict=True):
                self._multiply(out, x, y, rows, cols)
            yield Tile(rows, cols, made[0], made[1] if self.problem.has_teacher else None)

    def _multiply(self, out: Tensor, x: Tensor, y: Tensor, rows: Span, cols: Span) -> None:
        a = x[slice(*rows)].float()
        for lo, hi in self.pieces(cols):
            torch.mm(a, y[lo:hi].float().T, out=out[:, lo - cols[0] : hi - cols[0]])

    def pieces(self, cols: Span) -> Iterator[Span]:
        """The columns of a tile, cut where its widened features have no room."""
        for lo in range(*cols, self.tiling.piece):
            yield lo, min(cols[1], lo + self.tiling.piece)

    def add(self, sums: GradientSum, dS: Tensor, rows: Span, cols: Span) -> None:
        """Add the gradients of a tile of dS (h, w) to the sums."""
        for lo, hi in self.pieces(cols):
            sums.add(dS[:, lo - cols[0] : hi - cols[0]], rows, (lo, hi))


def in_large_pages(memory: Tensor) -> None:
    """Ask for large pages: 20,000 faults on small ones take 4% of the largest benchmark."""
    if memory.nbytes > LARGE:
        cpp.advise_large_pages(memory.data_ptr(), memory.nbytes)


def prepare_kept(problem: Problem, made: Statistics) -> None:
    """Large pages and units for what is kept; the ends of its rows, which nobody writes, are 0."""
    in_large_pages(made.kept)
    if made.kept.dtype == torch.float32:
        made.kept[..., len(problem.y) :].zero_()  # for the same bits from the same features
    else:
        made.units.copy_(fixed_point.units_of(problem))
        made.kept.view(len(made.kept), -1)[:, len(problem.x) * row_stride(problem) :].zero_()


def addresses_of(problem: Problem, kept: Tensor, units: Tensor) -> tuple[int, ...]:
    """S and T in fixed point as the extension takes them, 0 for T without a teacher."""
    stride = row_stride(problem)
    if len(kept) == 1:
        return kept.data_ptr(), 0, stride, units.data_ptr(), 0, 0
    positives = positives_of(kept, problem, stride)
    return (
        *(kept.data_ptr(), kept[1].data_ptr(), stride),
        *(units.data_ptr(), units[1].data_ptr(), positives.data_ptr()),
    )


def kept_gradients(
    problem: Problem, tiling: Tiling, needs: Needs, sweep, statistics: Statistics
) -> Gradients:
    """From what forward kept, which a second backward may read again."""
    kept = statistics.kept
    sums = GradientSum(problem, needs, _without_unit(sweep))
    plane = Plane(problem, tiling, matrices=1)
    if kept.dtype == torch.int16:
        sweep.read(*addresses_of(problem, kept, statistics.units))
    for rows, cols in plane.spans():
        dS = plane.at(0, rows, cols)
        S, T = kept[0, rows[0] :, cols[0] :], kept[-1, rows[0] :, cols[0] :]
        tile = Tile(rows, cols, S, T if problem.has_teacher else None)
        sweep.sweep_to(dS.data_ptr(), dS.stride(0), *tile.addresses)
        plane.add(sums, dS, rows, cols)
    return sums.finish(problem.scale, offset_gradients(problem, needs, sweep))


def tiled_gradients(
    problem: Problem, tiling: Tiling, needs: Needs, sweep, dtype: torch.dtype | None = None
) -> Gradients:
    """Tile by tile: similarities again, dS in their place, its products."""
    plane = Plane(problem, tiling)
    sums = GradientSum(problem, needs, _without_unit(sweep), dtype=dtype)
    for tile in plane.multiplied():
        sweep.sweep(*tile.addresses)
        plane.add(sums, tile.S, tile.rows, tile.cols)
    return sums.finish(problem.scale, offset_gradients(problem, needs, sweep))


def _without_unit(sweep) -> Callable[[Tensor], Tensor] | None:
    """A function that divides a sum by the unit that dS carries; None where it is 1."""
    return None if sweep.unit == 1 else partial(multiply, factor=1 / sweep.unit)


def fused_gradients(problem: Problem, needs: Needs, sweep, unit: str) -> Gradients:
    """The gradients by the products of the extension, on the CPU's unit for bfloat16."""
    p = packed(problem)
    dx = torch.empty_like(p.x) if needs.x else p.x.new_empty(0)
    dy = torch.empty_like(p.y) if needs.y else p.y.new_empty(0)
    places = (dx.data_ptr() if needs.x else 0, dy.data_ptr() if needs.y else 0)
    sweep.fused(unit, features_of(p), *places)
    return Gradients(dx, dy, problem.scale, offset_gradients(problem, needs, sweep))


def offset_gradients(problem: Problem, needs: Needs, sweep) -> Tensor:
    """(R,) the gradients of the offsets of a pass that is done; empty where not wanted."""
    rows = problem.x.shape[0] + problem.y.shape[0]
    made = problem.scale.new_empty(rows if needs.logit_offsets else 0)
    if needs.logit_offsets:
        sweep.finish_offsets(made.data_ptr())
    return made


def packed(p: Problem) -> Problem:
    """The problem as the extension reads it: row after row, a float8 teacher in bfloat16."""
    if p.teacher_x is not None and p.teacher_y is not None:
        p = p._replace(teacher_x=p.teacher_x.to(p.x.dtype), teacher_y=p.teacher_y.to(p.x.dtype))
    return p.contiguous()
