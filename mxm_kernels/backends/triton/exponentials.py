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
# Of the normalisers of a tile, in powers of 2, that is 40 nats. With c the least normaliser,
# exp(L - c) <= exp(40) and exp(c - l) >= exp(-40); what vanishes, L < c - 87, is below
# exp(-87) of its row and its column.
GRADIENT_RANGE = tl.constexpr(57.0)
# Sums are taken against the greatest entry met so far, which is lifted to 2**LIFT: a million of them
# stay inside float32. A sum of at least LEAST_SUM lost only terms below 2**-46 of itself; what is
# less lies 110 nats below the greatest entry, or is empty, and is computed again (``rescue``).
LIFT = tl.constexpr(80.0)
LEAST_SUM = tl.constexpr(2.0**-80)
LOWEST = tl.constexpr(-1e30)  # a reference before any entry; finite, since -inf - -inf is NaN


@triton.jit
def exp(x):
    """exp(x), one factor and one instruction; 0 below float32's normal numbers."""
    return tl.exp2(x * LOG2E)


@triton.jit
def two_sided(total, factor, rows, cols, d_rows, d_cols):
    """d_i exp(L - l_i) + d_j exp(L - l_j) of the logits L = ln(2) factor total, (BLOCK_M, BLOCK_N).

    A row or column whose normaliser is -inf gets garbage.
    """
    rows, cols = rows * LOG2E, cols * LOG2E
    low_row = tl.min(tl.where(rows == float("-inf"), float("inf"), rows), 0)
    low_col = tl.min(tl.where(cols == float("-inf"), float("inf"), cols), 0)
    low = tl.minimum(low_row, low_col)
    high = tl.maximum(tl.max(rows, 0), tl.max(cols, 0))
    if high - low <= GRADIENT_RANGE:
        by_row = d_rows * tl.exp2(low - rows)
        by_col = d_cols * tl.exp2(low - cols)
        grad = tl.exp2(total * factor - low) * (by_row[:, None] + by_col[None, :])
    else:
        grad = tl.exp2(total * factor - rows[:, None]) * d_rows[:, None]
        grad += tl.exp2(total * factor - cols[None, :]) * d_cols[None, :]
    return grad


@triton.jit
def raised(reference, total, factor):
    """The reference of sums once a tile's logits factor total are among them, in powers of 2.

    The greatest magnitude stands for the greatest entry: a factor may be negative.
    """
    top = tl.max(tl.abs(total).reshape(total.shape[0] * total.shape[1]), 0)
    return tl.maximum(reference, top * tl.abs(factor) - LIFT)


@triton.jit
def add_sums(
    sums, factor, share, S, s, T, t, axis: tl.constexpr, FIELDS: tl.constexpr
):  # fmt: skip
    """``sums`` times ``factor``, and to them the sums of a tile's shares over ``axis``.

    They are those of share, share s S and share t T: FIELDS - 1 of them count.
    """
    total = sums[0] * factor + tl.sum(share, axis)
    weighted, own = total, total
    if FIELDS >= 3:
        weighted = sums[1] * factor + tl.sum(share * S, axis) * s
    if FIELDS == 4:
        own = sums[2] * factor + tl.sum(share * T, axis) * t
    return total, weighted, own
