"""Statistics of the rows and columns that lie far below the rest, computed again.

``statistics`` sums against one reference for many rows, so a row whose greatest logit is 55
nats below the greatest of all has sums that vanish, and a row without an entry has none. The
program that merges such a row walks its whole width, each row against its own maximum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mxm_kernels.backends.triton.exponentials import LN2, LOG2E
from mxm_kernels.backends.triton.tile import products, valid_scale

TILE = {"BLOCK_N": 32, "BLOCK_D": 16}
NOTHING = tl.constexpr(-1e30)  # below every logit


@triton.jit
def _add(top, sums, values, weights, FIELDS: tl.constexpr):
    """Add the entries of a tile to (maximum, sums against it) of each of its rows."""
    new = tl.maximum(top, tl.max(values, 1))
    # An empty row has maximum -inf; -inf - -inf would be NaN.
    safe = tl.where(new == float("-inf"), 0.0, new)
    factor = tl.exp2(top - safe)
    share = tl.exp2(values - safe[:, None])
    total = sums[0] * factor + tl.sum(share, 1)
    weighted, self_weighted = total, total
    if FIELDS >= 3:
        weighted = sums[1] * factor + tl.sum(share * weights, 1)
    if FIELDS == 4:
        self_weighted = sums[2] * factor + tl.sum(share * values, 1)
    return new, (total, weighted, self_weighted)


@triton.jit
def again(
    x, y, teacher_x, teacher_y, scale, teacher_scale, x_groups, y_groups, rows, M, N, D, TEACHER_D,
    T_FIELDS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """n, t, u and h of some rows of x, which are M, against all N of y."""
    row = tl.minimum(rows, M - 1)
    group = tl.load(x_groups + row)
    s = valid_scale(scale)
    S_top = tl.full((rows.shape[0],), float("-inf"), tl.float32)
    T_top = S_top
    zero = tl.zeros((rows.shape[0],), tl.float32)
    negatives_met = zero
    S_total, T_total, T_weighted, T_own = zero, zero, zero, zero
    for col_block in range(tl.cdiv(N, BLOCK_N)):
        cols = col_block * BLOCK_N + tl.arange(0, BLOCK_N)
        col = tl.minimum(cols, N - 1)
        S = products(x, y, row, col, D, BLOCK_D, PRECISION, WIDEN, False) * s
        kept = (cols < N)[None, :] & (group[:, None] != tl.load(y_groups + col)[None, :])
        negatives = tl.where(kept, S * LOG2E, float("-inf"))
        S_top, sums = _add(S_top, (S_total, S_total, S_total), negatives, S, 2)
        S_total = sums[0]
        if T_FIELDS:
            T = products(
                teacher_x, teacher_y, row, col, TEACHER_D, BLOCK_D, PRECISION, WIDEN, False
            )
            T = T * (valid_scale(teacher_scale) * LOG2E)
            T = tl.where((cols < N)[None, :], T, NOTHING)  # -inf times a share of 0 is NaN
            T_top, sums = _add(T_top, (T_total, T_weighted, T_own), T, S, T_FIELDS)
            T_total, T_weighted, T_own = sums
    for col_block in range(tl.cdiv(N, BLOCK_N)):  # apart from the products, beside which it spilled
        cols = col_block * BLOCK_N + tl.arange(0, BLOCK_N)
        others = tl.load(y_groups + tl.minimum(cols, N - 1))
        kept = (cols < N)[None, :] & (group[:, None] != others[None, :])
        negatives_met = tl.maximum(negatives_met, tl.max(kept.to(tl.float32), 1))
    n = (S_top + tl.log2(S_total)) * LN2
    # A row with a negative whose sum is 0 has a feature that is not finite; so has a row whose T
    # is nowhere above the number that stands for the columns beyond the last.
    n = tl.where((negatives_met > 0) & (n == float("-inf")), float("nan"), n)
    T_total = tl.where(T_top <= NOTHING, float("nan"), T_total)
    t = (T_top + tl.log2(T_total)) * LN2
    return n, t, T_weighted / T_total, t - T_own / T_total * LN2
