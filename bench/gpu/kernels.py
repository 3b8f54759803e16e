"""Triton kernels whose only purpose is to be timed."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def read_kernel(
    data,  # (BLOCKS * BLOCK,) float32
    sums,  # (programs,) float32 out: without it nothing would need to be read
    BLOCKS: tl.constexpr,  # Triton 3.6's interpreter takes no range of an argument with numpy 2.5
    BLOCK: tl.constexpr,
):
    """Every program reads all of ``data``, each from another block on.

    ``.cg`` reads through L2 only: an L1 cache would serve a block that it has seen.
    """
    program = tl.program_id(0)
    first = program * BLOCKS // tl.num_programs(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for step in range(BLOCKS):
        block = (first + step) % BLOCKS
        total += tl.load(data + block * BLOCK + tl.arange(0, BLOCK), cache_modifier=".cg")
    tl.store(sums + program, tl.sum(total, axis=0))


@triton.jit
def empty_kernel(out):
    """Nothing; ``out`` makes it an ordinary launch with an argument."""
