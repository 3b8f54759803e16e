"""Where S and T of a chunk lie in memory when backward comes to it, if they do.

Three ways to a tile of S and T: 16-bit features whose products were not kept are multiplied again
in the tile. Kept products are loaded. Products of float32 features that were not kept are made
again by the vendor's product, into the workspace, where dS then takes the place of S.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mxm_kernels.backends.interface import Memory, Problem
from mxm_kernels.backends.tiles import Span
from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.chunks import padded
from mxm_kernels.backends.triton.plan import check_budget, chunk_of


class Chunk(NamedTuple):
    """Memory of one chunk."""

    dS: Tensor  # (height, stride), to be written
    products: Tensor | None  # (1 or 2, rows, stride) of S and T; None: multiplied in the tile
    first: tuple[int, int]  # row and column that ``products`` begin with


class Chunks:
    """The workspace of a backward, and its chunks in the order in which they are walked."""

    def __init__(self, p: Problem, memory: Memory, kept: Tensor | None = None) -> None:
        """``p`` as the kernels read it; ``kept`` (1 or 2, M, stride) of forward, or nothing."""
        self.p = p
        self.kept = kept if kept is not None and kept.numel() else None
        self.remade = self.kept is None and p.x.dtype == torch.float32
        check_budget(p, memory)
        nbytes = 0 if self.kept is None else self.kept.nbytes
        self.shape = chunk_of(p, memory, nbytes, self.remade)
        height, width = self.shape
        dtype = launch.workspace_dtype(p.x.dtype, p.x.device)
        matrices = p.matrices if self.remade else 1
        # Each row has room for whole tiles: the kernels store without a mask over columns.
        self.workspace = p.x.new_empty((matrices, height, padded(width)), dtype=dtype)

    def chunk(self, rows: Span, cols: Span) -> Chunk:
        """The memory of a chunk; products that have to be made again are made."""
        dS = self.workspace[0]
        if self.kept is not None:
            return Chunk(dS, self.kept, (0, 0))
        if self.remade:
            multiply(self.p, self.workspace, rows, cols)
            return Chunk(dS, self.workspace, (rows[0], cols[0]))
        return Chunk(dS, None, (0, 0))


def multiply(p: Problem, out: Tensor, rows: Span, cols: Span) -> None:
    """Products of S, and of T, into the corner of each matrix of ``out`` (1 or 2, height, width).

    By the vendor's float32 product, which follows torch.set_float32_matmul_precision.
    """
    for matrix, (a, b) in zip(out, p.feature_pairs, strict=True):
        corner = matrix[: rows[1] - rows[0], : cols[1] - cols[0]]
        torch.mm(a[slice(*rows)], b[slice(*cols)].T, out=corner)
