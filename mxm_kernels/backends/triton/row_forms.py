"""A block of rows after the statistics: losses of its rows and their derivatives.

A row stands in each lane and walks its own positives. Symbols and forms as in
``backends/pairs.py``, which defines them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mxm_kernels.backends.triton.tile import sigmoid, softplus


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
def _debiased(N, margin, count, scale, columns, prior):
    """What n is without the positives expected among the negatives, whether that is the floor.

    And its derivatives by n and p. Divisions are of logarithms: one that calls a function spills.
    """
    negatives = (columns - count).to(tl.float32)
    share = tl.log(prior * negatives) - tl.log(tl.maximum(count, 1).to(tl.float32))
    taken = tl.exp(share - margin)  # NaN without a negative
    left = tl.log(1.0 - taken)
    level = N + left - tl.log(1.0 - prior)
    lone = float("-inf") == N
    floor = tl.where(lone, N, tl.log(negatives) - scale)
    on_floor = (taken >= 1.0) | (level <= floor) | lone
    by_n = tl.where(on_floor, 0.0, tl.exp(-left))
    by_p = tl.where(on_floor, 0.0, tl.exp(share - margin - left))
    return tl.where(on_floor, floor, level), on_floor, by_n, by_p


@triton.jit
def _pull(level, S, slots, weights, first, count, hard):
    """Of each lane's row the derivative of softplus(level - S) by the level."""
    total = tl.zeros_like(level)
    for k in range(tl.max(count, axis=0)):
        here = k < count
        value, _ = _value(S, slots, first + k, here)
        weight = hard * tl.load(weights + first + k, mask=here, other=0.0)
        total += tl.where(here, weight * sigmoid(level - value), 0.0)
    return total


@triton.jit
def mixed_block(
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
    scale,
    columns,
    prior,
    FORM: tl.constexpr,
    SOFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Losses of a block of rows and their derivatives by the scale."""
    WEIGHED: tl.constexpr = FORM != "none" and FORM != "joint" and FORM != "whole"
    WHOLE: tl.constexpr = SOFT or (FORM != "none" and FORM != "masked" and FORM != "decoupled")
    SOFTPLUS: tl.constexpr = FORM == "masked" or FORM == "debiased"
    row = block * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    first = tl.load(offsets + row, mask=inside, other=0)
    count = tl.load(offsets + row + 1, mask=inside, other=0) - first
    N = tl.load(n + row, mask=inside, other=0.0)
    # A row without a positive has n = -inf only if a feature is not finite: -inf 0 is NaN.
    loss = tl.where(count == 0, N * 0.0, 0.0)
    by_n, by_p, by_scale, level, factor = loss, loss, loss, N, hard
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
        if FORM == "debiased":
            level, on_floor, more_n, less_p = _debiased(N, margin, count, scale, columns, prior)
            pull = _pull(level, S, slots, weights, first, count, hard)
            by_scale = tl.where(on_floor, -pull, by_scale)
            by_n += pull * more_n
            by_p -= pull * less_p
    for k in range(tl.max(count, axis=0)):
        here = k < count
        value, place = _value(S, slots, first + k, here)
        by_S = tl.zeros_like(value)
        if WEIGHED:
            weight = factor * tl.load(weights + first + k, mask=here, other=0.0)
            if SOFTPLUS:
                pull = weight * sigmoid(level - value)
                loss += tl.where(here, weight * softplus(level - value), 0.0)
            else:  # NaN times 0 is NaN
                pull = weight + (level - value) * 0.0
                loss += tl.where(here, weight * (level - value), 0.0)
            if FORM == "masked" or FORM == "decoupled":
                by_n += tl.where(here, pull, 0.0)
            by_S -= pull
        if WHOLE:
            by_S += by_p * (tl.exp(value - top) / total)
        tl.store(dS + place, by_S, mask=here)
    tl.store(dn + row, by_n, mask=inside)
    return loss, by_scale
