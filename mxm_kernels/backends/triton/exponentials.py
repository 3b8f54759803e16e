"""The exponentials of a tile, in base 2: one for each entry, serving rows and columns alike.

An exponential is what a tile has most of after its product: the special-function unit does 16
a clock where the matrix unit does a thousand multiplications. exp(x) as the compiler writes it
takes five instructions (a factor, and two for results below float32's normal numbers), exp2 of
a fused multiply-add takes two. Hence a tile's product stays as it is, unscaled, and its logits
are taken to base 2 by the factor scale log2(e).

exp(L - r_i) and exp(L - c_j) differ by a factor of the row times a factor of the column, so one
exponential against a reference serves both, as long as no factor leaves float32: a tile whose
references lie too far apart takes two.
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
# Sums are taken against the greatest magnitude met so far, lifted by up to 2**LIFT: a million of
# them stay inside float32. A sum of at least LEAST_SUM lost only terms below 2**-46 of itself; what
# is less lies 55 nats and the lift below the greatest, or is empty, and is computed again
# (``rescue``). An exponent is rounded to its size, so the lift is half of the scale, up to 55 nats:
# no coarser than the logits are, and for features of unit length up to scale 36 no row is lost.
LIFT = tl.constexpr(80.0)
LEAST_SUM = tl.constexpr(2.0**-80)
LOWEST = tl.constexpr(-1e30)  # a reference before any entry; finite, since -inf - -inf is NaN


@triton.jit
def exp(x):
    """Exponential, one factor and one instruction; 0 below float32's normal numbers."""
    return tl.exp2(x * LOG2E)


@triton.jit
def _exp_at_most(bound, x):
    """exp(min(x, bound)). Only rounding takes x above: a logit of 1e9 is rounded by 64."""
    return exp(tl.minimum(x, bound, propagate_nan=tl.PropagateNan.ALL))


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
        grad = _exp_at_most(GRADIENT_RANGE, total * scale - low)
        grad *= by_row[:, None] + by_col[None, :]
    else:
        grad = _exp_at_most(0.0, total * scale - rows[:, None]) * d_rows[:, None]
        grad += _exp_at_most(0.0, total * scale - cols[None, :]) * d_cols[None, :]
    return grad


@triton.jit
def raised(reference, total, factor):
    """The reference of sums once a tile's logits factor total are among them, in powers of 2.

    The greatest magnitude stands for the greatest entry: a factor may be negative.
    """
    size = tl.abs(factor)
    top = tl.max(tl.abs(total).reshape(total.shape[0] * total.shape[1]), 0)
    return tl.maximum(reference, top * size - tl.minimum(size * 0.5, LIFT))


@triton.jit
def add_sums(
    sums, factor, share, S, s, T, t, axis: tl.constexpr, FIELDS: tl.constexpr
):  # fmt: skip
    """``sums`` times ``factor``, and to them the sums of a tile's shares over ``axis``.

    They are those of share, share s S and share t T: FIELDS - 1 of them count.
    """
    total = sums[0] * factor + tl.sum(share, axis)
    weighted, self_weighted = total, total
    if FIELDS >= 3:
        weighted = sums[1] * factor + tl.sum(share * S, axis) * s
    if FIELDS == 4:
        self_weighted = sums[2] * factor + tl.sum(share * T, axis) * t
    return total, weighted, self_weighted
