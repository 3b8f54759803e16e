"""Walking the M x N plane tile by tile, and the gradient products of one tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    ``rescale`` multiplies a sum, in place, by what the tiles lack: the scale, the inverse of a
    factor that they carry. ``alone``: there is one tile, whose products on a GPU need no sum and
    come in the dtype of the features. ``dtype`` is that of the results, by default of the features.
    """

    def __init__(
        self,
        problem: Problem,
        needs: Needs,
        rescale: Callable[[Tensor], Tensor] | None = None,
        *,
        alone: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.problem, self.rescale = problem, rescale
        x, y = problem.x, problem.y
        self.dtype = x.dtype if dtype is None else dtype
        self.direct = alone and rescale is None and x.device.type == "cuda"
        summed = self.dtype if self.direct else problem.accumulator
        self.dx = x.new_empty(x.shape, dtype=self.dtype) if needs.x else None
        self.dy = y.new_empty(y.shape, dtype=summed) if needs.y else None

    def add(self, dS: Tensor, rows: Span, cols: Span) -> None:
        """Add one tile: dS (h, w) of image rows ``rows`` and text rows ``cols``."""
        if self.direct:
            self._multiply(dS)
            return
        first_row, first_col = rows[0] == 0, cols[0] == 0
        if self.dx is not None:
            if first_col:
                self._block = self._room(self.dx[slice(*rows)])
            add_product(self._block, dS, self.problem.y[slice(*cols)], first=first_col)
            if cols[1] == self.problem.y.shape[0]:
                done = self._rescaled(self._block)
                if done.dtype != self.dx.dtype:
                    self.dx[slice(*rows)] = done
        if self.dy is not None:
            x = self.problem.x[slice(*rows)]
            add_product(self.dy[slice(*cols)], dS.T, x, first=first_row)

    def _multiply(self, dS: Tensor) -> None:
        if self.dx is not None:
            torch.mm(dS, self.problem.y, out=self.dx)
        if self.dy is not None:
            torch.mm(dS.T, self.problem.x, out=self.dy)

    def _room(self, dx: Tensor) -> Tensor:
        """Where a row block of dx is summed: in place if its dtype is the accumulator's."""
        dtype = self.problem.accumulator
        return dx if dx.dtype == dtype else dx.new_empty(dx.shape, dtype=dtype)

    def finish(self, dscale: Tensor) -> Gradients:
        """Return the sums in the dtype of the results."""
        x, y = self.problem.x, self.problem.y
        return Gradients(
            x.new_empty(0) if self.dx is None else self.dx,
            y.new_empty(0) if self.dy is None else self._rescaled(self.dy).to(self.dtype),
            dscale,
        )

    def _rescaled(self, total: Tensor) -> Tensor:
        return total if self.rescale is None else self.rescale(total)


def add_product(out: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """``out += a @ b`` (``=`` if first) with out in the accumulator dtype, unrounded in between.

    On a GPU 16-bit factors go to the matrix unit as they are, with float32 results; a CPU
    product of 16-bit factors would round its result to 16 bits, so there they are widened.
    """
    if out.device.type == "cuda" and out.dtype != a.dtype:
        product = torch.mm(a, b.to(a.dtype), out_dtype=out.dtype)
        out.copy_(product) if first else out.add_(product)
    else:
        out.addmm_(a.to(out.dtype), b.to(out.dtype), beta=0 if first else 1)


def times(
    grad: Tensor, dx: Tensor, dy: Tensor, dscalars: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients times ``grad`` (), in float32 or float64, dx and dy then rounded to ``dtype``."""
    dx, dy = (d.to(grad.dtype).mul(grad).to(dtype) for d in (dx, dy))
    return dx, dy, dscalars * grad
