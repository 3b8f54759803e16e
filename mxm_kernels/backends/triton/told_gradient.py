"""dS of a tile under rules (``rules``), and its sums over rows, over columns and over the tile.

A pair that is removed for its row takes the row's log-sum-exp of removed pairs and its gradient,
another those of the negatives; columns alike. The gradient of the scale is the sum of dS times the
products, without the offsets, and that of the offsets are the sums of the rows and the columns of
dS. Each tile writes its own sums as lines of a scratch, and ``line_sums`` adds the lines in a fixed
order. They are of dS itself, in float32; the tile that is stored is u times that.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mxm_kernels.backends.triton.exponentials import exp_at_most
from mxm_kernels.backends.triton.rules import FINITE, both_sides, removed_by_ids, same_groups


@triton.jit
def _side(L, removed, n, dn, e, de, SOFT: tl.constexpr):
    """One side's part of dS; a pair that was decided otherwise in forward is bounded too."""
    if SOFT:
        reference, factor = tl.where(removed, e, n), tl.where(removed, de, dn)
    else:
        reference, factor = n, tl.where(removed, 0.0, dn)
    return exp_at_most(0.0, L - reference) * factor


@triton.jit
def told_gradient(
    S, T, s, t, image_groups, text_groups, rules, removed_rows, n, t_lse, dn, du, dm,
    row, col, inside, M, TEACHER: tl.constexpr, SOFT: tl.constexpr, NEG_SUM: tl.constexpr,
):  # fmt: skip
    """A tile of dS, 0 outside, without the positives' own part; S and T are products.

    ``removed_rows`` are the log-sum-exp of the removed pairs (M + N,) and its gradients.
    """
    grad = tl.zeros(S.shape, tl.float32)
    if SOFT:
        of_row, of_col = both_sides(rules[1], row, col, M)
        L = T * t + of_row + of_col
        t_row, t_col = both_sides(t_lse, row, col, M)
        du_row, du_col = both_sides(du, row, col, M)
        grad = exp_at_most(0.0, L - t_row) * du_row + exp_at_most(0.0, L - t_col) * du_col
    by_ids = removed_by_ids(rules, row, col, M)
    for_row, for_col = by_ids, by_ids
    if TEACHER:
        T = tl.where(by_ids, float("inf"), T)
        of_row, of_col = both_sides(rules[4], row, col, M)
        for_row, for_col = tl.minimum(of_row, FINITE) < T, tl.minimum(of_col, FINITE) < T
    of_row, of_col = both_sides(rules[0], row, col, M)
    L = S * s + of_row + of_col
    n_row, n_col = both_sides(n, row, col, M)
    dn_row, dn_col = both_sides(dn, row, col, M)
    e_row, e_col = both_sides(removed_rows[0], row, col, M)
    de_row, de_col = both_sides(removed_rows[1], row, col, M)
    of_S = _side(L, for_row, n_row, dn_row, e_row, de_row, SOFT)
    of_S += _side(L, for_col, n_col, dn_col, e_col, de_col, SOFT)
    if NEG_SUM:
        of_row, of_col = both_sides(dm, row, col, M)
        of_S += tl.where(for_row, 0.0, of_row) + tl.where(for_col, 0.0, of_col)
    grad += tl.where(same_groups(image_groups, text_groups, row, col), 0.0, of_S)
    return tl.where(inside, grad, 0.0)


@triton.jit
def store_lines(
    grad, S, lines, side_sums, own_row, own_col, height, width,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The sums of a tile of dS; those of rows and columns where ``side_sums`` is not 0.

    ``lines`` are (column blocks, height), (row blocks, width) and (tiles,).
    """
    # Over both at once: of one sum after the other Triton 3.6 makes no code for sm_100.
    tl.store(lines[2] + tl.program_id(0), tl.sum(grad * S))
    store_side_lines(grad, lines, side_sums, own_row, own_col, height, width, BLOCK_M, BLOCK_N)


@triton.jit
def store_side_lines(
    grad, lines, side_sums, own_row, own_col, height, width,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The sums of a tile of dS over its rows and its columns, where ``side_sums`` is not 0."""
    if side_sums > 0:
        row, col = own_row + tl.arange(0, BLOCK_M), own_col + tl.arange(0, BLOCK_N)
        row_line = lines[0] + (own_col // BLOCK_N).to(tl.int64) * height
        col_line = lines[1] + (own_row // BLOCK_M).to(tl.int64) * width
        tl.store(row_line + row, tl.sum(grad, 1), mask=row < height)
        tl.store(col_line + col, tl.sum(grad, 0), mask=col < width)
