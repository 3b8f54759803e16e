"""What the statistics' kernels share: the sums of exponentials of a tile, and where they go."""

from __future__ import annotations

import triton
import triton.language as tl

from mxm_kernels.backends.triton.exponentials import LN2

# What is added to the logits, base 2, of a row or column that is outside, and takes the place of
# a positive's. Both at once are inside float32; -inf times a share of 0 would be NaN.
OUTSIDE = tl.constexpr(-1.5e38)
NOTHING = tl.constexpr(-1e38)  # a maximum below it is of no entry


@triton.jit
def add_two(a, b, c, d):
    """Pairs, added number by number."""
    return a + c, b + d


@triton.jit
def add_three(a, b, c, d, e, f):
    """Triples, added number by number."""
    return a + d, b + e, c + f


@triton.jit
def store_sums(
    L, weights, factor, line, length, at, inside,
    axis: tl.constexpr, OWN: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """Maxima of the logits L, base 2, over ``axis``, and sums of exp against them.

    They are those of exp, of exp times ``factor`` weights and, with OWN, of exp times the logits.
    Where SUM is not 0, the logits are summed themselves, into that field of the line.
    """
    top = tl.max(L, axis)
    share = tl.exp2(L - tl.expand_dims(top, axis))
    # All at once: one after the other, all shares and all weights are in registers, which spills.
    if SUM:
        # Another bound for each axis: the compiler would keep one tile for both.
        bound: tl.constexpr = NOTHING * (1 + axis / 8)
        plain = tl.where(L > bound, L, 0.0)  # noqa: SIM300 (L is the tile)
        total, weighted, plain = tl.reduce((share, share * weights, plain), axis, add_three)
        tl.store(line + SUM * length + at, plain * LN2, mask=inside)
    else:
        total, weighted = tl.reduce((share, share * weights), axis, add_two)
    empty = top <= NOTHING
    tl.store(line + at, tl.where(empty, float("-inf"), top), mask=inside)
    tl.store(line + length + at, tl.where(empty, 0.0, total), mask=inside)
    tl.store(line + 2 * length + at, tl.where(empty, 0.0, weighted * factor), mask=inside)
    if OWN:
        own = tl.sum(share * L, axis) * LN2
        tl.store(line + 3 * length + at, tl.where(empty, 0.0, own), mask=inside)
