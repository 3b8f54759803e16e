"""What every kernel does with a tile: its logits, its mask of positives."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def logits(
    x,  # (M, D)
    y,  # (N, D)
    rows,  # (BLOCK_M,) image rows, each < M
    cols,  # (BLOCK_N,) text rows, each < N
    D,
    scale,  # () float32
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Logits scale <x_i, y_j> of the tile, (BLOCK_M, BLOCK_N) float32."""
    lane = tl.arange(0, BLOCK_D)
    x_tile = x + rows.to(tl.int64)[:, None] * D + lane[None, :]
    y_tile = y + cols.to(tl.int64)[:, None] * D + lane[None, :]
    total = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for start in range(0, D, BLOCK_D):
        inside = lane[None, :] < D - start
        a = tl.load(x_tile + start, mask=inside, other=0.0)
        b = tl.load(y_tile + start, mask=inside, other=0.0)
        if WIDEN:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total * scale


@triton.jit
def has_any(mask):
    """Whether any entry of a tile is true, as a scalar to branch on."""
    return tl.max(tl.max(mask.to(tl.int32), axis=1), axis=0) > 0
