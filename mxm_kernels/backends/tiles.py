"""Walking the M x N plane tile by tile, and the gradient products of one tile."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from mxm_kernels.backends.problem import Gradients, Needs, Problem

Span = tuple[int, int]


def split(length: int, most: int) -> Iterator[Span]:
    """Cut ``range(length)`` into the fewest spans of at most ``most``, as equal as can be."""
    pieces = -(-length // most)
    edges = [length * k // pieces for k in range(pieces + 1)]
    return pairwise(edges)


class GradientSum:
    """Accumulates dx = dS y and dy = dS^T x over the tiles of dS, in the accumulator dtype.

    Tiles come row block by row block; dx of a row block is stored once the block is done, so
    only dy, which every row block adds to, is held in the accumulator dtype as a whole.
    ``unit`` is a factor that the tiles carry and the sums must lose.
    """

    def __init__(self, problem: Problem, needs: Needs, unit: Tensor | None = None) -> None:
        self.problem, self.unit = problem, unit
        x, y = problem.x, problem.y
        self.dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needs.x else None
        self.dy = y.new_zeros(y.shape, dtype=problem.accumulator) if needs.y else None

    def add(self, dS: Tensor, rows: Span, cols: Span) -> None:
        """Add one tile: dS (h, w) of image rows ``rows`` and text rows ``cols``."""
        if self.dx is not None:
            if cols[0] == 0:
                shape = rows[1] - rows[0], self.dx.shape[1]
                self._block = dS.new_zeros(shape, dtype=self.problem.accumulator)
            add_product(self._block, dS, self.problem.y[slice(*cols)])
            if cols[1] == self.problem.y.shape[0]:
                self.dx[slice(*rows)] = self._without_unit(self._block)
        if self.dy is not None:
            add_product(self.dy[slice(*cols)], dS.T, self.problem.x[slice(*rows)])

    def finish(self, dscale: Tensor) -> Gradients:
        """Return the sums in the dtype of the features."""
        x, y = self.problem.x, self.problem.y
        return Gradients(
            x.new_empty(0) if self.dx is None else self.dx,
            y.new_empty(0) if self.dy is None else self._without_unit(self.dy).to(y.dtype),
            dscale,
        )

    def _without_unit(self, total: Tensor) -> Tensor:
        return total if self.unit is None else total.div_(self.unit)


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out += a @ b`` with out in the accumulator dtype and no rounding in between.

    On a GPU 16-bit factors go to the matrix unit as they are, with float32 results; a CPU
    product of 16-bit factors would round its result to 16 bits, so there they are widened.
    """
    if out.dtype == a.dtype == b.dtype:
        out.addmm_(a, b)
    elif out.device.type == "cuda":
        out += torch.mm(a, b.to(a.dtype), out_dtype=out.dtype)
    else:
        out.addmm_(a.to(out.dtype), b.to(out.dtype))
