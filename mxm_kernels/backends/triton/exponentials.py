"""The exponentials of a tile, in base 2: one for each entry, serving rows and columns alike.

An exponential is what a tile has most of after its product: the special-function unit does 16
a clock where the matrix unit does a thousand multiplications. exp(x) as the compiler writes it
takes five instructions (a factor, and two for results below float32's normal numbers), exp2 of
a fused multiply-add takes two. Hence a tile's product stays as it is, unscaled, and its logits
are taken to base 2 by the factor scale log2(e).

exp(L - l_i) and exp(L - l_j) of the gradient differ by a factor of the row times a factor of the
column, so one exponential against a reference serves both, as long as no factor leaves float32: a
tile whose normalisers lie too far apart takes two.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
# Of the normalisers of a tile. With c the least normaliser,
# exp(L - c) <= exp(40) and exp(c - l) >= exp(-40); what vanishes, L < c - 87, is below
# exp(-87) of its row and its column.
GRADIENT_RANGE = tl.constexpr(40.0)


@triton.jit
def exp(x):
    """Exponential, one factor and one instruction; 0 below float32's normal numbers."""
    return tl.exp2(x * LOG2E)


@triton.jit
def exp_at_most(bound, x):
    """exp(min(x, bound)). Only rounding takes x above: a logit of 1e9 is rounded by 64."""
    return exp(tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def two_exponentials(total, scale, rows, cols, d_rows, d_cols):
    """As ``two_sided``, with an exponential for the row and one for the column.

    Faster where no product stands before it: ``two_sided`` waits for its block four times.
    """
    grad = exp_at_most(0.0, total * scale - rows[:, None]) * d_rows[:, None]
    return grad + exp_at_most(0.0, total * scale - cols[None, :]) * d_cols[None, :]


@triton.jit
def two_sided(total, scale, rows, cols, d_rows, d_cols):
    """d_i exp(L - l_i) + d_j exp(L - l_j) of the logits L = scale total, (BLOCK_M, BLOCK_N).

    A row or column whose normaliser is -inf gets garbage. Logits and normalisers meet before they
    are taken to base 2: the rounding of each would be that of its size, not of their difference.
    """
    low_row = tl.min(tl.where(rows == float("-inf"), float("inf"), rows), 0)
    low_col = tl.min(tl.where(cols == float("-inf"), float("inf"), cols), 0)
    low = tl.minimum(low_row, low_col)
    high = tl.maximum(tl.max(rows, 0), tl.max(cols, 0))
    if high - low <= GRADIENT_RANGE:
        by_row, by_col = d_rows * exp(low - rows), d_cols * exp(low - cols)
        grad = exp_at_most(GRADIENT_RANGE, total * scale - low)
        grad *= by_row[:, None] + by_col[None, :]
    else:
        grad = two_exponentials(total, scale, rows, cols, d_rows, d_cols)
    return grad
