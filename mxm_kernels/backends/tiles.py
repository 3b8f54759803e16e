"""Walking the M x N plane tile by tile, and the gradient products of one tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from mxm_kernels.backends.interface import Gradients, Needs, Problem, SigmoidLoss

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
    factor that they carry. ``chunk`` is the height and width of the largest tile: where it has all
    columns (rows), a row of dx (dy) is one product, which on a GPU needs no sum and comes in the
    dtype of the features. ``dtype`` is that of the results, by default of the features.
    """

    def __init__(
        self,
        problem: Problem,
        needs: Needs,
        rescale: Callable[[Tensor], Tensor] | None = None,
        *,
        chunk: tuple[int, int] = (0, 0),
        dtype: torch.dtype | None = None,
    ) -> None:
        self.problem, self.rescale, self.chunk = problem, rescale, chunk
        x, y = problem.x, problem.y
        self.dtype = x.dtype if dtype is None else dtype
        direct = rescale is None and x.device.type == "cuda" and self.dtype == x.dtype
        self.direct_dx = direct and chunk[1] == y.shape[0]
        self.direct_dy = direct and chunk[0] == x.shape[0]
        summed = self.dtype if self.direct_dy else problem.accumulator
        self.dx = x.new_empty(x.shape, dtype=self.dtype) if needs.x else None
        self.dy = y.new_empty(y.shape, dtype=summed) if needs.y else None
        self._block: Tensor | None = None  # of dx, being summed

    def add(self, dS: Tensor, rows: Span, cols: Span) -> None:
        """Add one tile: dS (h, w) of image rows ``rows`` and text rows ``cols``."""
        if self.dx is not None:
            self._add_dx(self.dx[slice(*rows)], dS, cols)
        if self.dy is not None:
            dy, x = self.dy[slice(*cols)], self.problem.x[slice(*rows)]
            if self.direct_dy:
                torch.mm(dS.T, x, out=dy)
            else:
                add_product(dy, dS.T, x, first=rows[0] == 0)

    def _add_dx(self, dx: Tensor, dS: Tensor, cols: Span) -> None:
        y = self.problem.y[slice(*cols)]
        if self.direct_dx:
            torch.mm(dS, y, out=dx)
            return
        if self._block is None:
            self._block = self._room(dx)
        add_product(self._block, dS, y, first=cols[0] == 0)
        if cols[1] == self.problem.y.shape[0]:
            done = self._rescaled(self._block)
            if done.dtype != dx.dtype:
                dx.copy_(done)
            self._block = None  # before the next block of rows takes its room

    def _room(self, dx: Tensor) -> Tensor:
        """Memory in which a row block of dx is summed: dx itself, in the accumulator's dtype."""
        dtype = self.problem.accumulator
        return dx if dx.dtype == dtype else dx.new_empty(dx.shape, dtype=dtype)

    def finish(self, dscale: Tensor, doffsets: Tensor | None = None) -> Gradients:
        """Return the sums in the dtype of the results."""
        x, y = self.problem.x, self.problem.y
        return Gradients(
            x.new_empty(0) if self.dx is None else self.dx,
            y.new_empty(0) if self.dy is None else self._rescaled(self.dy).to(self.dtype),
            dscale,
            dscale.new_empty(0) if doffsets is None else doffsets,
        )

    def _rescaled(self, total: Tensor) -> Tensor:
        return total if self.rescale is None else self.rescale(total)


def add_product(out: Tensor, a: Tensor, b: Tensor, *, first: bool) -> None:
    """``out += a @ b`` (``=`` if first) with out in the accumulator dtype, unrounded in between.

    On a GPU 16-bit factors go to the matrix unit as they are, with float32 results; a CPU
    product of 16-bit factors would round its result to 16 bits, so there they are widened.
    """
    if out.device.type != "cuda" or out.dtype == a.dtype:
        out.addmm_(a.to(out.dtype), b.to(out.dtype), beta=0 if first else 1)
    elif first:
        torch.mm(a, b.to(a.dtype), out_dtype=out.dtype, out=out)
    elif accumulates(a.device, a.dtype):
        torch.addmm(out, a, b.to(a.dtype), out_dtype=out.dtype, out=out)
    else:  # a temporary as large as out, and 12 bytes a number moved instead of 8
        out.add_(torch.mm(a, b.to(a.dtype), out_dtype=out.dtype))


@cache
def accumulates(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``device`` adds products of ``dtype`` factors to float32 sums in place.

    PyTorch 2.11's source for CUDA takes float32 sums beside 16-bit factors; other builds do not
    say. The call is tried once, on 16 x 16 numbers; its result is not read, so nothing waits.
    """
    total = torch.zeros((16, 16), dtype=torch.float32, device=device)
    factor = total.to(dtype)
    try:
        torch.addmm(total, factor, factor, out_dtype=torch.float32, out=total)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError):
        return False
    return True


def times(
    grad: Tensor, made: SigmoidLoss, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients times ``grad`` (), in its dtype; dx and dy are then rounded to ``dtype``."""
    dx, dy = (d.to(grad.dtype).mul(grad).to(dtype) for d in (made.dx, made.dy))
    return dx, dy, made.dscalars * grad, made.doffsets * grad
