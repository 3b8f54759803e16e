"""The rows after the statistics: losses and their derivatives in one launch.

One kernel serves both directions: its first programs take the rows, the others the columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.problem import (
    Form,
    Problem,
    RowLosses,
    RowProblem,
    Shares,
    Sides,
    Statistics,
    Upstream,
)
from mxm_kernels.backends.triton.tile import sigmoid, softplus, teacher_arguments

BLOCK = 128


@triton.jit
def _finite(S):
    """NaN instead of what only a feature that is not finite can give."""
    return tl.where(tl.abs(S) == float("inf"), float("nan"), S)


@triton.jit
def _value(S, slots, place, here):
    """S of a positive of each lane, and where it stands."""
    if slots is not None:
        place = tl.load(slots + place, mask=here, other=0)
    return _finite(tl.load(S + place, mask=here, other=0.0)), place


@triton.jit
def _positives(S, slots, weights, first, count, WEIGHED: tl.constexpr, BLOCK: tl.constexpr):
    """Of the positives of each lane's row: the greatest, the sum relative to it, their weight."""
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    weighed = tl.zeros((BLOCK,), tl.float32)
    for k in range(tl.max(count, axis=0)):
        here = k < count
        value, _ = _value(S, slots, first + k, here)
        higher = tl.where(here & ~(value <= top), value, top)  # NaN is, and stays
        grown = total * tl.exp(top - higher) + tl.exp(value - higher)
        total = tl.where(here, grown, total)
        top = higher
        if WEIGHED:
            weighed += tl.load(weights + first + k, mask=here, other=0.0)
    return top, tl.where(count == 0, 1.0, total), weighed


@triton.jit
def _mixed_block(
    block,
    n,  # (rows,)
    S,  # (pairs,)
    u,  # (rows,), not read without SOFT
    weights,  # (pairs,), not read where FORM weighs no positive
    offsets,  # (rows + 1,) int64
    slots,  # (pairs,) int64 where S and dS of each pair are, or None: in order
    dn,  # (rows,) out
    dS,  # (pairs,) out
    rows,
    hard,  # (BLOCK,)
    soft,  # (BLOCK,)
    FORM: tl.constexpr,
    SOFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Losses of a block of rows, a row in each lane, which walks its own positives.

    Symbols and forms as in ``backends/pairs.py``, which defines them.
    """
    WEIGHED: tl.constexpr = FORM == "masked" or FORM == "unmasked" or FORM == "decoupled"
    WHOLE: tl.constexpr = SOFT or (FORM != "none" and FORM != "masked" and FORM != "decoupled")
    row = block * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    first = tl.load(offsets + row, mask=inside, other=0)
    count = tl.load(offsets + row + 1, mask=inside, other=0) - first
    N = tl.load(n + row, mask=inside, other=0.0)
    # A row without a positive has n = -inf only if a feature is not finite: -inf 0 is NaN.
    loss = tl.where(count == 0, N * 0.0, 0.0)
    by_n, by_p, level, factor = loss, loss, N, hard
    if FORM == "decoupled":  # a row without a negative is decoupled from nothing
        level = tl.where(float("-inf") == N, 0.0, N)
        factor = tl.where(float("-inf") == N, 0.0, hard)
    if WHOLE:
        top, total, weighed = _positives(S, slots, weights, first, count, FORM == "unmasked", BLOCK)
        margin = (N - top) - tl.log(total)  # n - p
        lse = tl.where(margin > 0, N, top + tl.log(total)) + softplus(-tl.abs(margin))
        by_lse = tl.zeros_like(loss)
        if FORM == "unmasked":
            level = lse
            by_lse += hard * weighed
        if FORM == "whole":
            loss += hard * lse
            by_lse += hard
        if SOFT:
            loss += soft * (lse - tl.load(u + row, mask=inside, other=0.0))
            by_lse += soft
        by_n += by_lse * sigmoid(margin)
        by_p += by_lse * sigmoid(-margin)
        if FORM == "joint":
            loss += tl.where(count == 0, 0.0, hard * softplus(margin))
            pull = tl.where(count == 0, 0.0, hard * sigmoid(margin))
            by_n += pull
            by_p -= pull
    for k in range(tl.max(count, axis=0)):
        here = k < count
        value, place = _value(S, slots, first + k, here)
        by_S = tl.zeros_like(value)
        if WEIGHED:
            weight = factor * tl.load(weights + first + k, mask=here, other=0.0)
            if FORM == "masked":
                pull = weight * sigmoid(level - value)
                loss += tl.where(here, weight * softplus(level - value), 0.0)
            else:  # NaN times 0 is NaN
                pull = weight + (level - value) * 0.0
                loss += tl.where(here, weight * (level - value), 0.0)
            if FORM != "unmasked":
                by_n += tl.where(here, pull, 0.0)
            by_S -= pull
        if WHOLE:
            by_S += by_p * (tl.exp(value - top) / total)
        tl.store(dS + place, by_S, mask=here)
    tl.store(dn + row, by_n, mask=inside)
    return loss


@triton.jit
def _share(share, weights, weighted, row):
    """What the loss of each lane's row is multiplied with; ``weighted`` rows have weights, or 0."""
    return share * tl.load(weights + row, mask=row < weighted, other=1.0)


@triton.jit(do_not_specialize=["rows", "hard", "soft", "hard_weighted", "soft_weighted"])
def mixed_rows_kernel(
    n,  # (rows,)
    S,  # (pairs,)
    u,  # (rows,)
    weights,  # (pairs,)
    offsets,  # (rows + 1,) int64
    hard_weights,  # (rows,), not read unless hard_weighted
    soft_weights,  # (rows,), not read unless soft_weighted
    losses,  # (rows,) out
    dn,  # (rows,) out
    dS,  # (pairs,) out
    rows,
    hard,
    soft,
    hard_weighted,
    soft_weighted,
    FORM: tl.constexpr,
    SOFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The rows of one direction."""
    block = tl.program_id(0)
    row = block * BLOCK + tl.arange(0, BLOCK)
    hard = _share(hard, hard_weights, hard_weighted, row)
    soft = _share(soft, soft_weights, soft_weighted, row)
    loss = _mixed_block(
        block, n, S, u, weights, offsets, None, dn, dS, rows, hard, soft, FORM, SOFT, BLOCK
    )
    tl.store(losses + row, loss, mask=row < rows)


@triton.jit
def _mixed_side(
    block, n, S, u, weights, offsets, slots, hard_weights, soft_weights, dn, dS, du,
    rows, hard, soft, weighted,
    FORM: tl.constexpr, SOFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum of the losses of a block of rows of either direction, and du."""
    row = block * BLOCK + tl.arange(0, BLOCK)
    hard = _share(hard, hard_weights, weighted, row)
    soft = _share(soft, soft_weights, weighted, row)
    if SOFT:
        tl.store(du + row, -soft, mask=row < rows)
    loss = _mixed_block(
        block, n, S, u, weights, offsets, slots, dn, dS, rows, hard, soft, FORM, SOFT, BLOCK
    )
    return tl.sum(tl.where(row < rows, loss, 0.0), axis=0)


_NUMBERS = ["rows", "cols", "pairs", "hard_rows", "soft_rows", "hard_cols", "soft_cols"]
_WEIGHTED = ["rows_weighted", "cols_weighted"]


@triton.jit(do_not_specialize=_NUMBERS + _WEIGHTED)
def mixed_loss_kernel(
    n_rows,  # (rows,)
    n_cols,  # (cols,)
    S,  # (pairs,)
    u_rows,  # (rows,)
    u_cols,  # (cols,)
    row_weights,  # (pairs,)
    col_weights,  # (pairs,) in text-major order
    image_offsets,  # (rows + 1,) int64
    text_offsets,  # (cols + 1,) int64
    text_slots,  # (pairs,) int64
    row_hard_weights,  # (rows,), not read unless rows_weighted
    row_soft_weights,  # (rows,)
    col_hard_weights,  # (cols,), not read unless cols_weighted
    col_soft_weights,  # (cols,)
    scale,  # ()
    teacher_scale,  # ()
    losses,  # (programs,) out
    dn_rows,  # (rows,) out
    dn_cols,  # (cols,) out
    dS,  # (2, pairs) out, of the rows and of the columns, in slot order
    du_rows,  # (rows,) out
    du_cols,  # (cols,) out
    rows,
    cols,
    pairs,
    hard_rows,
    soft_rows,
    hard_cols,
    soft_cols,
    rows_weighted,
    cols_weighted,
    FORM: tl.constexpr,
    SOFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Both directions: sums of the losses by block, and the gradient by the statistics."""
    # The host does not wait to look at the scales: what is not positive shows as NaN.
    positive = (tl.load(scale) > 0) & (tl.load(teacher_scale) > 0)
    sign = tl.where(positive, 1.0, float("nan"))
    hard_rows, soft_rows = hard_rows * sign, soft_rows * sign
    hard_cols, soft_cols = hard_cols * sign, soft_cols * sign
    program = tl.program_id(0)
    row_blocks = tl.cdiv(rows, BLOCK)
    if program < row_blocks:
        loss = _mixed_side(
            program, n_rows, S, u_rows, row_weights, image_offsets, None,
            row_hard_weights, row_soft_weights, dn_rows, dS, du_rows,
            rows, hard_rows, soft_rows, rows_weighted, FORM, SOFT, BLOCK,
        )  # fmt: skip
    else:
        loss = _mixed_side(
            program - row_blocks, n_cols, S, u_cols, col_weights, text_offsets, text_slots,
            col_hard_weights, col_soft_weights, dn_cols, dS + pairs, du_cols,
            cols, hard_cols, soft_cols, cols_weighted, FORM, SOFT, BLOCK,
        )  # fmt: skip
    tl.store(losses + program, loss)


def mixed_rows(p: RowProblem, form: Form, hard: float, soft: float) -> RowLosses:
    """Losses of the rows and their derivatives in n and S."""
    rows = p.n.shape[0]
    out = RowLosses(torch.empty_like(p.n), torch.empty_like(p.n), torch.empty_like(p.S))
    mixed_rows_kernel[(triton.cdiv(rows, BLOCK),)](
        p.n, p.S, p.u if soft else p.n, p.weights, p.offsets, p.hard_weights, p.soft_weights, *out,
        rows, hard, soft, len(p.hard_weights), len(p.soft_weights),
        FORM=form, SOFT=soft != 0, BLOCK=BLOCK,
    )  # fmt: skip
    return out


def mixed_loss(
    problem: Problem, statistics: Statistics, sides: Sides, form: Form, shares: Shares
) -> tuple[Tensor, Upstream]:
    """The loss of both directions and its gradient by the statistics."""
    s, rows, cols, pairs = statistics, len(problem.x), len(problem.y), len(statistics.positives)
    *_, teacher_scale = teacher_arguments(problem)
    row_shares = sides[-4:]
    programs = triton.cdiv(rows, BLOCK) + triton.cdiv(cols, BLOCK)
    losses = torch.empty(programs, dtype=torch.float32, device=problem.x.device)
    upstream = Upstream(
        torch.empty_like(s.n_rows),
        torch.empty_like(s.n_cols),
        s.positives.new_empty((2, pairs)),
        torch.empty_like(s.u_rows),
        torch.empty_like(s.u_cols),
    )
    mixed_loss_kernel[(programs,)](
        s.n_rows, s.n_cols, s.positives, s.u_rows, s.u_cols,
        sides.row_weights, sides.col_weights, problem.image_offsets, sides.text_offsets,
        sides.text_slots, *row_shares, problem.scale, teacher_scale, losses, *upstream,
        rows, cols, pairs, *shares, len(row_shares[0]), len(row_shares[2]),
        FORM=form, SOFT=problem.has_teacher, BLOCK=BLOCK,
    )  # fmt: skip
    return losses.sum(), upstream
