"""dS in memory: a workspace of one chunk, walked over the M x N plane."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mxm_kernels.backends.interface import Problem
from mxm_kernels.backends.tiles import GradientSum, Span
from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.chunks import chunk_shape, padded, spans, workspace_bytes

# (workspace, rows, columns) -> the sums that the kernels make beside dS. It writes dS of the rows
# and columns into the upper left corner of the workspace.
Fill = Callable[[Tensor, Span, Span], Tensor]


def shape(problem: Problem) -> tuple[int, int]:
    """Rows and columns of dS that are held at a time."""
    dtype = launch.workspace_dtype(problem.x.dtype, problem.x.device)
    rows, cols = problem.x.shape[0], problem.y.shape[0]
    return chunk_shape(rows, cols, dtype.itemsize, workspace_bytes(problem.x.device))


def walk(problem: Problem, sums: GradientSum, fill: Fill) -> list[Tensor]:
    """Fill the workspace, ``sums.chunk``, again and again and add its products.

    Row chunk by row chunk, without a wait for the device. Returns what ``fill`` gives for each.
    """
    height, width = sums.chunk
    dtype = launch.workspace_dtype(problem.x.dtype, problem.x.device)
    # Each row has room for whole tiles: the kernels store without a mask over columns.
    workspace = problem.x.new_empty((height, padded(width)), dtype=dtype)
    given = []
    for rows in spans(problem.x.shape[0], height):
        for cols in spans(problem.y.shape[0], width):
            given.append(fill(workspace, rows, cols))
            sums.add(workspace[: rows[1] - rows[0], : cols[1] - cols[0]], rows, cols)
    return given
