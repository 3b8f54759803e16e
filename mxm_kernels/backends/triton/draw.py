"""How often each positive is drawn, counted where the numbers are made: one launch.

One kernel serves both directions: its first programs take the rows, the others the columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import Draw

DRAW = {"BLOCK": 32, "TURNS": 32}  # rows of a program, and pairs of rounds that it draws together


@triton.jit
def _split_mix(seed, count):
    """Number ``count`` of SplitMix64: ``backends/pairs.py`` has its source."""
    z = seed + count * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def _drawn_block(
    block, seed, first_row, all_rows, offsets, weights, rounds, rows,
    BLOCK: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """How often each positive of a block of rows was drawn: no two programs share a positive.

    Rows first_row and on of all rows and columns; a turn is two rounds.
    """
    row = block * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    first = tl.load(offsets + row, mask=inside, other=0)
    count = tl.load(offsets + row + 1, mask=inside, other=0) - first
    choices = count.to(tl.uint64)[:, None]
    for k in range(tl.max(count, axis=0)):
        drawn = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, rounds, 2 * TURNS):
            turn = start // 2 + tl.arange(0, TURNS)[None, :]
            place = turn.to(tl.uint64) * all_rows + (first_row + row + 1).to(tl.uint64)[:, None]
            number = _split_mix(seed, place)
            low = ((number & 0xFFFFFFFF) * choices) >> 32
            high = ((number >> 32) * choices) >> 32
            drew = ((low == k) & (2 * turn < rounds)).to(tl.int32)
            drew += ((high == k) & (2 * turn + 1 < rounds)).to(tl.int32)
            drawn += tl.sum(drew, axis=1)
        tl.store(weights + first + k, drawn.to(tl.float32) / rounds, mask=k < count)


@triton.jit(do_not_specialize=["rounds", "rows", "cols"])
def drawn_weights_kernel(
    seed,  # () int64
    image_offsets,  # (rows + 1,) int64
    text_offsets,  # (cols + 1,) int64
    row_weights,  # (pairs,) out
    col_weights,  # (pairs,) out
    rounds,
    rows,
    cols,
    BLOCK: tl.constexpr,
    TURNS: tl.constexpr,
):
    """Share of the rounds in which each positive was drawn, by its row and by its column."""
    program = tl.program_id(0)
    row_blocks = tl.cdiv(rows, BLOCK)
    number = tl.load(seed).to(tl.uint64)
    all_rows = rows.to(tl.uint64) + cols.to(tl.uint64)
    if program < row_blocks:
        _drawn_block(
            program, number, 0, all_rows, image_offsets, row_weights, rounds, rows, BLOCK, TURNS
        )
    else:
        _drawn_block(
            program - row_blocks, number, rows, all_rows, text_offsets, col_weights, rounds, cols,
            BLOCK, TURNS,
        )  # fmt: skip


def drawn_weights(draw: Draw, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both sides in one launch."""
    assert dtype == torch.float32, "the backend takes no float64"
    rows, cols = len(draw.image_offsets) - 1, len(draw.text_offsets) - 1
    size, like = draw.pairs, draw.seed
    weights = tuple(like.new_empty(size, dtype=torch.float32) for _ in range(2))
    programs = triton.cdiv(rows, DRAW["BLOCK"]) + triton.cdiv(cols, DRAW["BLOCK"])
    drawn_weights_kernel[(programs,)](
        draw.seed, draw.image_offsets, draw.text_offsets, *weights, draw.rounds, rows, cols, **DRAW
    )
    return weights[0], weights[1]
