"""How often each positive is drawn, counted where the numbers are made: one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.row_interface import Draw

DRAW = {"BLOCK": 32, "TURNS": 32}  # rows of a program, and pairs of rounds that it draws together


@triton.jit
def _split_mix(seed, count):
    """Number ``count`` of SplitMix64: ``backends/draws.py`` has its source."""
    z = seed + count * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit(do_not_specialize=["rounds", "rows"])
def drawn_weights_kernel(
    seed,  # () int64
    offsets,  # (rows + 1,) int64
    weights,  # (positives,) out
    rounds,
    rows,
    BLOCK: tl.constexpr,
    TURNS: tl.constexpr,
):
    """Share of the rounds in which each positive of a block of rows was drawn.

    No two programs share a positive. A turn is two rounds.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    number, all_rows = tl.load(seed).to(tl.uint64), rows.to(tl.uint64)
    first = tl.load(offsets + row, mask=inside, other=0)
    count = tl.load(offsets + row + 1, mask=inside, other=0) - first
    choices = count.to(tl.uint64)[:, None]
    for k in range(tl.max(count, axis=0)):
        drawn = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, rounds, 2 * TURNS):
            turn = start // 2 + tl.arange(0, TURNS)[None, :]
            place = turn.to(tl.uint64) * all_rows + (row + 1).to(tl.uint64)[:, None]
            word = _split_mix(number, place)
            low = ((word & 0xFFFFFFFF) * choices) >> 32
            high = ((word >> 32) * choices) >> 32
            drew = ((low == k) & (2 * turn < rounds)).to(tl.int32)
            drew += ((high == k) & (2 * turn + 1 < rounds)).to(tl.int32)
            drawn += tl.sum(drew, axis=1)
        # Rounded as every backend rounds it: a GPU's own quotient may be one unit off.
        share = tl.div_rn(drawn.to(tl.float32), tl.zeros((BLOCK,), tl.float32) + rounds)
        tl.store(weights + first + k, share, mask=k < count)


def drawn_weights(draw: Draw, dtype: torch.dtype) -> Tensor:
    """One launch for all rows."""
    assert dtype == torch.float32, "the backend takes no float64"
    rows = len(draw.offsets) - 1
    weights = draw.seed.new_empty(draw.positives, dtype=torch.float32)
    drawn_weights_kernel[(triton.cdiv(rows, DRAW["BLOCK"]),)](
        draw.seed, draw.offsets, weights, draw.rounds, rows, **DRAW
    )
    return weights
