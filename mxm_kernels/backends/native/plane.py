"""The walk over the M x N plane in tiles, and the gradients that come of it.

torch.mm multiplies features into a tile, the extension sweeps over it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mxm_kernels.backends.interface import Gradients, Needs, Problem
from mxm_kernels.backends.native.extension import cpp, features_of
from mxm_kernels.backends.tiles import GradientSum, Span, split
from mxm_kernels.backends.units import multiply

TILE = 5 << 20  # floats in a tile: two tiles are 40 MiB
TILE_COLUMNS = 4608  # at D = 1024 their widened features are 18 MiB
KEPT = 4 << 20  # floats of S, and of T, up to which forward keeps them: two are 32 MiB
LARGE = 8 << 20  # bytes from which a workspace asks for large pages
PAD = 16  # floats in the widest vector of the sweep


class Plane:
    """Walks the M x N plane and multiplies features into its two tiles."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        rows, cols = problem.x.shape[0], problem.y.shape[0]
        self.columns = list(split(cols, TILE_COLUMNS))
        self.widest = max(hi - lo for lo, hi in self.columns)
        self.stride = stride_of(self.widest)
        self.rows = list(split(rows, max(1, TILE // self.stride)))
        height = max(hi - lo for lo, hi in self.rows)
        shape = (2 if problem.has_teacher else 1, height, self.stride)
        self.buffers = problem.x.new_empty(shape, dtype=torch.float32)
        if self.buffers.nbytes > LARGE:
            # 20,000 faults on small pages take 4% of the largest benchmark.
            cpp.advise_large_pages(self.buffers.data_ptr(), self.buffers.nbytes)

    def __iter__(self):
        """Tiles in row-block order, each with S and T multiplied out, not yet scaled."""
        p, S = self.problem, self.buffers[0]
        for rows in self.rows:
            for cols in self.columns:
                self._multiply(S, p.x, p.y, rows, cols)
                if p.teacher_x is not None and p.teacher_y is not None:
                    self._multiply(self.buffers[1], p.teacher_x, p.teacher_y, rows, cols)
                yield rows, cols

    def _multiply(self, out: Tensor, x: Tensor, y: Tensor, rows: Span, cols: Span) -> None:
        a, b = x[slice(*rows)].float(), y[slice(*cols)].float()
        torch.mm(a, b.T, out=self.cut(out, rows, cols))

    def cut(self, buffer: Tensor, rows: Span, cols: Span) -> Tensor:
        """The part of a buffer that a tile fills."""
        return buffer[: rows[1] - rows[0], : cols[1] - cols[0]]

    def addresses(self, rows: Span, cols: Span) -> tuple[int, ...]:
        """The tile as the extension takes it."""
        teacher = self.buffers[1].data_ptr() if self.problem.has_teacher else 0
        place = rows[0], rows[1] - rows[0], cols[0], cols[1] - cols[0]
        return self.buffers.data_ptr(), teacher, self.stride, *place


def stride_of(width: int) -> int:
    """Floats from row to row: whole vectors, and not a multiple of 4 KiB.

    Rows a multiple of 4 KiB apart share the sets of the L1 cache.
    """
    stride = -(-width // PAD) * PAD
    return stride + PAD if stride % 1024 == 0 else stride


def kept_shape(problem: Problem) -> tuple[int, ...]:
    """(1 or 2, M, stride): one tile, which the products would fill again in backward; or (0,)."""
    rows, cols = problem.x.shape[0], problem.y.shape[0]
    if cols > TILE_COLUMNS or rows * stride_of(cols) > KEPT:
        return (0,)
    return 2 if problem.has_teacher else 1, rows, stride_of(cols)


def kept_gradients(problem: Problem, needs: Needs, sweep, kept: Tensor) -> Gradients:
    """From the tile that forward kept, which a second backward may read again."""
    rows, cols = len(problem.x), len(problem.y)
    sums = GradientSum(problem, needs, _without_unit(sweep))
    dS, teacher = torch.empty_like(kept[0]), kept[-1].data_ptr() if problem.has_teacher else 0
    sweep.sweep_to(dS.data_ptr(), kept.data_ptr(), teacher, kept.shape[2], rows, cols)
    sums.add(dS[:, :cols], (0, rows), (0, cols))
    return sums.finish(problem.scale)


def tiled_gradients(
    problem: Problem, needs: Needs, sweep, dtype: torch.dtype | None = None
) -> Gradients:
    """Tile by tile: similarities again, dS in their place, its products."""
    plane, sums = Plane(problem), GradientSum(problem, needs, _without_unit(sweep), dtype=dtype)
    for rows, cols in plane:
        sweep.sweep(*plane.addresses(rows, cols))
        sums.add(plane.cut(plane.buffers[0], rows, cols), rows, cols)
    return sums.finish(problem.scale)


def _without_unit(sweep) -> Callable[[Tensor], Tensor] | None:
    """A function that divides a sum by the unit that dS carries; None where it is 1."""
    return None if sweep.unit == 1 else partial(multiply, factor=1 / sweep.unit)


def fused_gradients(problem: Problem, needs: Needs, sweep, unit: str) -> Gradients:
    """By the extension's own products, on a unit for bfloat16."""
    p = packed(problem)
    dx = torch.empty_like(p.x) if needs.x else p.x.new_empty(0)
    dy = torch.empty_like(p.y) if needs.y else p.y.new_empty(0)
    places = (dx.data_ptr() if needs.x else 0, dy.data_ptr() if needs.y else 0)
    sweep.fused(unit, features_of(p), *places)
    return Gradients(dx, dy, problem.scale)


def packed(p: Problem) -> Problem:
    """The problem as the extension reads it: row after row, a float8 teacher in bfloat16."""
    if p.teacher_x is not None and p.teacher_y is not None:
        p = p._replace(teacher_x=p.teacher_x.to(p.x.dtype), teacher_y=p.teacher_y.to(p.x.dtype))
    return p.contiguous()
