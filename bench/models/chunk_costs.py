"""What the products of the chunks of dS move and how many tiles they have, from the sizes alone.

tests/bench/models/test_chunk_costs.py holds these numbers to the products that backward calls.
"""

from __future__ import annotations

from dataclasses import dataclass

from mxm_kernels.backends.triton.chunks import chunk_shape, padded, spans

TILE = (128, 256)  # of the product that a program of the vendor's BLAS is taken to compute
PROCESSORS = 132  # of an H100


@dataclass(frozen=True)
class ChunkCosts:
    """Chunks of dS of one backward, and the two products of the largest chunk."""

    height: int  # rows of the largest chunk
    width: int  # its columns
    chunks: int
    # Read and written by additions to the float32 sums of dX and dY. The first product of a sum is
    # written in its place and adds nothing.
    added_bytes: int
    dx_tiles: int  # of the (height x D) product with y
    dy_tiles: int  # of the (width x D) product with x


def tiles(rows: int, cols: int) -> int:
    """Tiles of a product's result."""
    return -(-rows // TILE[0]) * -(-cols // TILE[1])


def waves(count: int, processors: int = PROCESSORS) -> float:
    """How often ``count`` tiles fill the multiprocessors, one tile on each."""
    return count / processors


def chunk_costs(
    rows: int, cols: int, D: int, itemsize: int, workspace: int, accumulates: bool
) -> ChunkCosts:
    """Costs of the gradients of (rows, D) and (cols, D) features of ``itemsize`` bytes.

    Args:
        rows: M, of x.
        cols: N, of y.
        D: the dimension.
        itemsize: bytes of a number of dS.
        workspace: bytes of dS that are held at a time.
        accumulates: whether a product is added in place, which reads and writes the sum. Otherwise
            an addition reads the product as well. float32 features always accumulate.
    """
    height, width = chunk_shape(rows, cols, itemsize, workspace)
    row_chunks, col_chunks = len(spans(rows, height)), len(spans(cols, width))
    added = ((row_chunks - 1) * cols + (col_chunks - 1) * rows) * D
    return ChunkCosts(
        height,
        width,
        row_chunks * col_chunks,
        added * 4 * (2 if accumulates else 3),
        tiles(height, D),
        tiles(width, D),
    )


def backward_bytes(
    rows: int, cols: int, D: int, itemsize: int, workspace: int, accumulates: bool
) -> int:
    """Most memory that the gradients take besides themselves and O(M + N + P) numbers.

    While chunks are walked: the workspace; with 16-bit features also the float32 sums of dY, in the
    place of dY itself, and of a chunk's rows of dX; and, where products are not added in place
    (``tiles.accumulates``), the largest product. At the end: the float32 sums of dY beside dY. D is
    a multiple of 16.
    """
    height, width = chunk_shape(rows, cols, itemsize, workspace)
    walked = height * padded(width) * itemsize
    if itemsize >= 4:
        return walked  # the sums are the gradients
    product = 0 if accumulates else max(height, width)
    return max(walked + D * ((4 - itemsize) * cols + 4 * (height + product)), 4 * D * cols)
