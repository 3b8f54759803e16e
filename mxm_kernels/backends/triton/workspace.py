"""dS in memory: a workspace of one chunk, walked over the M x N plane."""

from __future__ import annotations

from collections.abc import Callable

from mxm_kernels.backends.interface import Problem
from mxm_kernels.backends.tiles import GradientSum, Span
from mxm_kernels.backends.triton.chunks import spans
from mxm_kernels.backends.triton.stored import Chunk, Chunks

# (chunk, rows, columns) -> None: writes dS of the rows and columns into the upper left corner.
Fill = Callable[[Chunk, Span, Span], None]


def walk(problem: Problem, chunks: Chunks, sums: GradientSum, fill: Fill) -> None:
    """Fill one chunk after the other, row chunk by row chunk, and add its products.

    Nothing waits for the device.
    """
    height, width = chunks.shape
    for rows in spans(problem.x.shape[0], height):
        for cols in spans(problem.y.shape[0], width):
            chunk = chunks.chunk(rows, cols)
            fill(chunk, rows, cols)
            sums.add(chunk.dS[: rows[1] - rows[0], : cols[1] - cols[0]], rows, cols)
    del chunks.workspace  # before sums are rounded into gradients, which takes as much again
