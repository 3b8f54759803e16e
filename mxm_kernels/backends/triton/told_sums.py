"""The partial statistics of a tile under rules (``rules``).

A line has the statistics of S over the negatives that remain: maximum, sum of exp, how many; then
those of T, as without rules; where T is summed also maximum and sum of exp of S over the removed
pairs; and last, where it is asked for, the sum of S over the negatives. S and T have their offsets.
The mean of S that the scale's gradient would need has no place: backward sums dS times the products
itself (``told_gradient``).

An entry is a negative or removed, so one exponential for the rows and one for the columns serves
both, against the maximum that the entry belongs to. T is summed first. What the ids say is then in
the tiles themselves, so that it is asked once: a logit OUTSIDE is of no pair, and a product of T
that is infinite is of a pair that the ids remove.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mxm_kernels.backends.triton.exponentials import LN2, LOG2E
from mxm_kernels.backends.triton.rules import FINITE, both_sides, removed_by_ids, same_groups
from mxm_kernels.backends.triton.sums import (
    NOTHING,
    OUTSIDE,
    add_three,
    add_two,
    store_sums,
)


@triton.jit
def _add_four(a, b, c, d, e, f, g, h):
    return a + e, b + f, c + g, d + h


@triton.jit
def _store_student(
    L, T, thresholds, line, length, at, inside,
    axis: tl.constexpr, TEACHER: tl.constexpr, T_FIELDS: tl.constexpr, NEG_SUM: tl.constexpr,
):  # fmt: skip
    """The partial statistics of the logits L, base 2, over ``axis``."""
    remaining = L
    if TEACHER:
        theta = tl.load(thresholds + at, mask=inside, other=float("inf"))
        removed = tl.expand_dims(tl.minimum(theta, FINITE), axis) < T
        remaining = tl.where(removed, OUTSIDE, L)
    # Another bound for each axis: the compiler would keep one tile for both.
    bound: tl.constexpr = NOTHING * (1 + axis / 8)
    top = tl.max(remaining, axis)
    counted = tl.where(remaining > bound, 1.0, 0.0)
    plain = tl.where(remaining > bound, remaining, 0.0)
    if T_FIELDS:
        removed_top = tl.max(tl.where(removed, L, OUTSIDE), axis)
        share = tl.exp2(
            L - tl.where(removed, tl.expand_dims(removed_top, axis), tl.expand_dims(top, axis))
        )
        total, removed_total = tl.where(removed, 0.0, share), tl.where(removed, share, 0.0)
        if NEG_SUM:
            total, removed_total, count, summed = tl.reduce(
                (total, removed_total, counted, plain), axis, _add_four
            )
        else:
            total, removed_total, count = tl.reduce(
                (total, removed_total, counted), axis, add_three
            )
        none = removed_top <= NOTHING
        of_removed = line + (3 + T_FIELDS) * length + at
        tl.store(of_removed, tl.where(none, float("-inf"), removed_top), mask=inside)
        tl.store(of_removed + length, tl.where(none, 0.0, removed_total), mask=inside)
    else:
        share = tl.exp2(remaining - tl.expand_dims(top, axis))
        if NEG_SUM:
            total, count, summed = tl.reduce((share, counted, plain), axis, add_three)
        else:
            total, count = tl.reduce((share, counted), axis, add_two)
    empty = top <= NOTHING
    tl.store(line + at, tl.where(empty, float("-inf"), top), mask=inside)
    tl.store(line + length + at, tl.where(empty, 0.0, total), mask=inside)
    tl.store(line + 2 * length + at, count, mask=inside)
    if NEG_SUM:
        SUM: tl.constexpr = 3 + T_FIELDS + 2 * (T_FIELDS > 0)
        tl.store(line + SUM * length + at, summed * LN2, mask=inside)


@triton.jit
def told_sums(
    S, T, s, t, image_groups, text_groups, rules, row_line, col_line,
    first_row, first_col, M, first, last,
    TEACHER: tl.constexpr, T_FIELDS: tl.constexpr, NEG_SUM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The partial statistics of a tile; S and T are products, without their scales."""
    rows, cols = first_row + tl.arange(0, BLOCK_M), first_col + tl.arange(0, BLOCK_N)
    row, col = tl.minimum(rows, M - 1), tl.minimum(cols, last - 1)
    row_inside, col_inside = rows < M, cols < last
    row_out = tl.where(row_inside, 0.0, OUTSIDE)[:, None]
    col_out = tl.where(col_inside, 0.0, OUTSIDE)[None, :]
    width, at_col = last - first, cols - first
    of_row, of_col = both_sides(rules[0], row, col, M)
    L = S * s + of_row + of_col
    if T_FIELDS:
        of_row, of_col = both_sides(rules[1], row, col, M)
        of_row, of_col = of_row * LOG2E + row_out, of_col * LOG2E + col_out
        OWN: tl.constexpr = T_FIELDS == 4
        of_T = T * (t * LOG2E) + of_row + of_col
        store_sums(of_T, L, 1.0, row_line + 3 * M, M, rows, row_inside, 1, OWN, 0)
        store_sums(of_T, L, 1.0, col_line + 3 * width, width, at_col, col_inside, 0, OWN, 0)
    by_ids = removed_by_ids(rules, row, col, M)
    no_pair = same_groups(image_groups, text_groups, row, col)
    if T_FIELDS:
        T = tl.where(by_ids, float("inf"), T)
    else:
        no_pair = no_pair | by_ids
    L = tl.where(no_pair, OUTSIDE, L * LOG2E + row_out) + col_out
    _store_student(L, T, rules[4], row_line, M, rows, row_inside, 1, TEACHER, T_FIELDS, NEG_SUM)
    _store_student(
        L, T, rules[4] + M + first, col_line, width, at_col, col_inside,
        0, TEACHER, T_FIELDS, NEG_SUM,
    )  # fmt: skip
