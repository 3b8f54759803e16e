"""Partial statistics in memory: for each row of a line of scratch a reference and its sums."""

from __future__ import annotations

import triton
import triton.language as tl

from mxm_kernels.backends.triton.exponentials import LOWEST


@triton.jit
def load_sums(state, length, index, known, FIELDS: tl.constexpr):
    """The sums of each index; 0 where not ``known``."""
    total = tl.load(state + length + index, mask=known, other=0.0)
    weighted, self_weighted = total, total
    if FIELDS >= 3:
        weighted = tl.load(state + 2 * length + index, mask=known, other=0.0)
    if FIELDS == 4:
        self_weighted = tl.load(state + 3 * length + index, mask=known, other=0.0)
    return total, weighted, self_weighted


@triton.jit
def load_partial(state, length, index, known, FIELDS: tl.constexpr):
    """The partial statistics of each index; the neutral values where not ``known``."""
    reference = tl.load(state + index, mask=known, other=LOWEST)
    total, weighted, self_weighted = load_sums(state, length, index, known, FIELDS)
    return reference, total, weighted, self_weighted


@triton.jit
def store_partial(state, length, index, inside, reference, sums, FIELDS: tl.constexpr):
    """Store the sums, and beside each of them the reference that they share."""
    tl.store(state + index, tl.zeros_like(sums[0]) + reference, mask=inside)
    tl.store(state + length + index, sums[0], mask=inside)
    if FIELDS >= 3:
        tl.store(state + 2 * length + index, sums[1], mask=inside)
    if FIELDS == 4:
        tl.store(state + 3 * length + index, sums[2], mask=inside)
