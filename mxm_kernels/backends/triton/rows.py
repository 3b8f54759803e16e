"""The losses of the rows and their derivatives, in one launch; backward in another.

A row stands in each lane and walks its own positives. Symbols and formulas as in
``core/formulas.py``, which defines them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.row_interface import FusedFormula, RowLosses, RowProblem
from mxm_kernels.backends.triton.row_terms import (
    debiased_level,
    label_smoothing,
    level_gradient,
    sum_of_positives,
)
from mxm_kernels.backends.triton.sigmoid_terms import sigmoid, softplus

BLOCK = 128
FORMULAS = frozenset(
    {"info_nce", "supcon_out", "supcon_in", "decoupled", "debiased", "logsumexp", "soft"}
)


@triton.jit(do_not_specialize=["rows", "constant", "hard", "soft", "smoothing"])
def row_losses_kernel(
    n,  # (rows,)
    S,  # (positives,)
    u,  # (rows,), not read without SOFT
    parameter,  # () or (rows,), not read unless PARAMETER
    neg_sum,  # (rows,), not read unless SMOOTHED
    weights,  # (positives,), not read where FORMULA weighs no positive
    hard_weights,  # (rows,)
    soft_weights,  # (rows,), not read without SOFT
    num_negatives,  # (rows,), read by "debiased" and where SMOOTHED
    offsets,  # (rows + 1,) int64
    losses,  # (rows,) out
    dn,  # (rows,) out
    dS,  # (positives,) out
    d_parameter,  # (rows,) out, if PARAMETER
    d_neg_sum,  # (rows,) out, if SMOOTHED
    rows,
    constant,
    hard,
    soft,
    smoothing,
    FORMULA: tl.constexpr,
    SOFT: tl.constexpr,
    PARAMETER: tl.constexpr,  # 0: none, 1: one for all rows, 2: one for each
    SMOOTHED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Losses of a block of rows and their derivatives by n, by S and by the parameter."""
    SOFTPLUS: tl.constexpr = FORMULA == "info_nce" or FORMULA == "debiased"
    OF_N: tl.constexpr = FORMULA == "info_nce" or FORMULA == "decoupled"  # the level is n
    WEIGHED: tl.constexpr = SOFTPLUS or OF_N or FORMULA == "supcon_out"
    TARGET: tl.constexpr = FORMULA == "soft"
    WHOLE: tl.constexpr = SOFT or not OF_N  # the positives of a row take part together
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    hard = hard * tl.load(hard_weights + row, mask=inside, other=0.0)
    first = tl.load(offsets + row, mask=inside, other=0)
    count = tl.load(offsets + row + 1, mask=inside, other=0) - first
    N = tl.load(n + row, mask=inside, other=0.0)
    # What the row's loss may not read: NaN shows, and -inf does not.
    loss = tl.where((count == 0) & (float("-inf") != N), N * 0.0, 0.0)
    by_n, by_p, by_parameter, level, factor = loss, loss, tl.zeros_like(loss), N, hard
    if FORMULA == "decoupled":  # without a negative the loss is 0
        level = tl.where(float("-inf") == N, 0.0, N)
        factor = tl.where(float("-inf") == N, hard * 0.0, hard)
    if WHOLE:
        top, total, weighed = sum_of_positives(
            S, weights, first, count, FORMULA == "supcon_out", BLOCK
        )
        margin = (N - top) - tl.log(total)  # n - p
        lse = tl.where(margin > 0, N, top + tl.log(total)) + softplus(-tl.abs(margin))
        by_lse = tl.zeros_like(loss)
        if FORMULA == "supcon_out":
            level = lse
            by_lse += hard * weighed
        if FORMULA == "logsumexp":
            loss += hard * lse
            by_lse += hard
        if TARGET:
            loss += hard * (lse - tl.load(u + row, mask=inside, other=0.0))
            by_lse += hard
        if SOFT:
            share = soft * tl.load(soft_weights + row, mask=inside, other=0.0)
            loss += share * (lse - tl.load(u + row, mask=inside, other=0.0))
            by_lse += share
        by_n += by_lse * sigmoid(margin)
        by_p += by_lse * sigmoid(-margin)
        if FORMULA == "supcon_in":
            loss += tl.where(count == 0, 0.0, hard * softplus(margin))
            pull = tl.where(count == 0, 0.0, hard * sigmoid(margin))
            by_n += pull
            by_p -= pull
        if FORMULA == "debiased":
            s = tl.load(parameter + (row if PARAMETER == 2 else row * 0), mask=inside, other=1.0)
            negatives = tl.load(num_negatives + row, mask=inside, other=1.0)
            level, more_n, less_p = debiased_level(N, margin, count, negatives, s, constant)
            pull = level_gradient(level, S, weights, first, count, hard)
            by_parameter = tl.where(more_n == 0, -pull, 0.0)
            by_n += pull * more_n
            by_p -= pull * less_p
    if SMOOTHED:
        e = smoothing * hard
        total_S = tl.load(neg_sum + row, mask=inside, other=0.0)
        negatives = tl.load(num_negatives + row, mask=inside, other=1.0)
        excess, by_neg_sum, of_weight, beside = label_smoothing(
            S, weights, first, count, negatives, total_S, FORMULA
        )
        of_weight *= e
        beside *= e
        if FORMULA == "supcon_in":
            excess += tl.where(count == 0, 0.0, top + tl.log(total))
            by_p += tl.where(count == 0, 0.0, e)
        loss += e * excess
        tl.store(d_neg_sum + row, e * by_neg_sum, mask=inside)
    if WHOLE:
        by_p /= total  # of each exp(S - top): two numbers for three in the loop, which spilled
    for k in range(tl.max(count, axis=0)):
        here = k < count
        value = tl.load(S + first + k, mask=here, other=0.0)
        by_S = tl.zeros_like(value)
        if WEIGHED:
            share_k = tl.load(weights + first + k, mask=here, other=0.0)
            weight = factor * share_k
            if SMOOTHED:
                by_S += of_weight * share_k
            if SOFTPLUS:
                pull = weight * sigmoid(level - value)
                loss += tl.where(here, weight * softplus(level - value), 0.0)
            else:  # NaN times 0 is NaN
                pull = weight + (level - value) * 0.0
                loss += tl.where(here, weight * (level - value), 0.0)
            if OF_N:
                by_n += tl.where(here, pull, 0.0)
            by_S -= pull
        if WHOLE:
            by_S += by_p * tl.exp(value - top)
        if SMOOTHED:
            by_S += beside
        tl.store(dS + first + k, by_S, mask=here)
    tl.store(losses + row, loss, mask=inside)
    tl.store(dn + row, by_n, mask=inside)
    if PARAMETER:
        tl.store(d_parameter + row, by_parameter, mask=inside)


@triton.jit(do_not_specialize=["rows", "positives", "stride", "soft"])
def row_losses_backward_kernel(
    grad,  # (rows,) with ``stride``, or () with 0
    checked,  # the first number is finite if all losses are; or None
    dn,  # (rows,)
    dS,  # (positives,)
    d_parameter,  # (rows,)
    d_neg_sum,  # (rows,), not read unless SMOOTHED
    owners,  # (positives,) int64
    soft_weights,  # (rows,), not read without SOFT
    du_out,  # (rows,)
    dn_out,  # (rows,)
    dS_out,  # (positives,)
    d_parameter_out,  # () or (rows,)
    d_neg_sum_out,  # (rows,), if SMOOTHED
    rows,
    positives,
    stride,
    soft,
    SOFT: tl.constexpr,
    PARAMETER: tl.constexpr,
    SMOOTHED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The derivatives times grad; the first programs take the rows, the others the positives."""
    program, row_blocks = tl.program_id(0), tl.cdiv(rows, BLOCK)
    fault = 0.0
    if checked is not None:
        fault = tl.load(checked) * 0.0  # NaN where it is not finite, and then everywhere
    if program < row_blocks:
        row = program * BLOCK + tl.arange(0, BLOCK)
        inside = row < rows
        g = tl.load(grad + row * stride, mask=inside, other=0.0) + fault
        tl.store(dn_out + row, g * tl.load(dn + row, mask=inside, other=0.0), mask=inside)
        if SOFT:
            share = soft * tl.load(soft_weights + row, mask=inside, other=0.0)
            tl.store(du_out + row, -g * share, mask=inside)
        if PARAMETER == 2:
            of_row = g * tl.load(d_parameter + row, mask=inside, other=0.0)
            tl.store(d_parameter_out + row, of_row, mask=inside)
        if SMOOTHED:
            by_neg_sum = g * tl.load(d_neg_sum + row, mask=inside, other=0.0)
            tl.store(d_neg_sum_out + row, by_neg_sum, mask=inside)
    else:
        place = (program - row_blocks) * BLOCK + tl.arange(0, BLOCK)
        there = place < positives
        owner = tl.load(owners + place, mask=there, other=0)
        g = tl.load(grad + owner * stride, mask=there, other=0.0) + fault
        tl.store(dS_out + place, g * tl.load(dS + place, mask=there, other=0.0), mask=there)
    if (PARAMETER == 1) & (program == 0):  # one sum, in a fixed order
        by_parameter = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, rows, BLOCK):
            at = start + tl.arange(0, BLOCK)
            g = tl.load(grad + at * stride, mask=at < rows, other=0.0) + fault
            by_parameter += g * tl.load(d_parameter + at, mask=at < rows, other=0.0)
        tl.store(d_parameter_out, tl.sum(by_parameter, axis=0))


def _parameter(problem: RowProblem) -> int:
    """Which kind of parameter: none, one for all rows, or one for each."""
    return problem.parameter.ndim + 1 if problem.parameter.numel() else 0


def row_losses(problem: RowProblem, formula: FusedFormula) -> RowLosses:
    """Losses of the rows and their derivatives."""
    rows, kind, made = len(problem.neg_lse), _parameter(problem), problem.allocate()
    row_losses_kernel[(triton.cdiv(rows, BLOCK),)](
        *problem[:-1], *made, rows, *formula[1:], FORMULA=formula.name, SOFT=formula.soft != 0,
        PARAMETER=kind, SMOOTHED=len(problem.neg_sum) > 0, BLOCK=BLOCK,
    )  # fmt: skip
    return made


BACKWARD_BLOCK = 1024


def row_losses_backward(
    grad: Tensor,
    checked: Tensor | None,
    made: RowLosses,
    problem: RowProblem,
    formula: FusedFormula,
) -> RowLosses:
    """Gradients by u, n, S, the parameter and the sum of the negatives."""
    rows, positives = len(problem.neg_lse), len(problem.positives)
    (targets, factor), out = formula.target_weights(problem), problem.allocate_gradients()
    programs = triton.cdiv(rows, BACKWARD_BLOCK) + triton.cdiv(positives, BACKWARD_BLOCK)
    row_losses_backward_kernel[(programs,)](
        grad, checked, *made[1:], problem.owners, targets, *out, rows, positives,
        grad.stride(0) if grad.ndim else 0, factor,
        SOFT=factor != 0 and len(problem.teacher_mean) > 0, PARAMETER=_parameter(problem),
        SMOOTHED=len(problem.neg_sum) > 0, BLOCK=BACKWARD_BLOCK,
    )  # fmt: skip
    return out
