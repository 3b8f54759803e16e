"""The parts of the losses of the rows: a row stands in each lane and walks its own positives.

Symbols and formulas as in ``core/formulas.py``, which defines them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mxm_kernels.backends.triton.sigmoid_terms import sigmoid


@triton.jit
def sum_of_positives(S, weights, first, count, WEIGHED: tl.constexpr, BLOCK: tl.constexpr):
    """For each lane's row: its greatest positive, their sum relative to it, their weight."""
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    weighed = tl.zeros((BLOCK,), tl.float32)
    for k in range(tl.max(count, axis=0)):
        here = k < count
        value = tl.load(S + first + k, mask=here, other=0.0)
        higher = tl.where(here & ~(value <= top), value, top)  # NaN is, and stays
        grown = total * tl.exp(top - higher) + tl.exp(value - higher)
        total = tl.where(here, grown, total)
        top = higher
        if WEIGHED:
            weighed += tl.load(weights + first + k, mask=here, other=0.0)
    return top, tl.where(count == 0, 1.0, total), weighed


@triton.jit
def debiased_level(N, margin, count, negatives, scale, prior):
    """N without the positives expected among the negatives, and its derivatives by n and p.

    That by n is 0 on the floor, and nowhere else. Divisions are of logarithms: one that calls a
    function spills.
    """
    share = tl.log(prior * negatives) - tl.log(tl.maximum(count, 1).to(tl.float32))
    taken = tl.exp(share - margin)  # NaN without a negative
    left = tl.log(1.0 - taken)
    level = N + left - tl.log(1.0 - prior)
    lone = float("-inf") == N
    floor = tl.where(lone, N, tl.log(negatives) - scale)
    on_floor = (taken >= 1.0) | (level <= floor) | lone
    by_n = tl.where(on_floor, 0.0, tl.exp(-left))
    by_p = tl.where(on_floor, 0.0, tl.exp(share - margin - left))
    return tl.where(on_floor, floor, level), by_n, by_p


@triton.jit
def level_gradient(level, S, weights, first, count, hard):
    """For each lane's row: the derivative of its softplus(level - S) by the level."""
    total = tl.zeros_like(level)
    for k in range(tl.max(count, axis=0)):
        here = k < count
        value = tl.load(S + first + k, mask=here, other=0.0)
        weight = hard * tl.load(weights + first + k, mask=here, other=0.0)
        total += tl.where(here, weight * sigmoid(level - value), 0.0)
    return total


@triton.jit
def label_smoothing(S, weights, first, count, negatives, neg_sum, FORMULA: tl.constexpr):
    """What label smoothing adds to each lane's loss, over e, and its derivatives.

    The second result is the derivative by ``neg_sum``, the sum of S over the negatives. The others
    are a and b: the derivative by S_k is a w_k + b. Where FORMULA has the positives in one
    logarithm p, p and its derivatives are yet to be added.
    """
    JOINT: tl.constexpr = FORMULA == "supcon_in"
    positives, weighed, weight = (tl.zeros_like(neg_sum),) * 3
    for k in range(tl.max(count, axis=0)):
        here = k < count
        value = tl.load(S + first + k, mask=here, other=0.0)
        positives += value
        if not JOINT:
            w = tl.load(weights + first + k, mask=here, other=0.0)
            weighed += w * value
            weight += w
    if JOINT:
        weight = tl.where(count == 0, 0.0, 1.0)
    if JOINT or FORMULA == "supcon_out":  # from the mean of the row
        share = weight * 0.0 + 1.0
        pull = weight / tl.maximum(negatives + count, 1.0)
        return weighed - pull * (neg_sum + positives), -pull, share, -pull
    # From the mean of the negatives; where a positive is in the denominator, of it too.
    some = tl.minimum(negatives, 1.0)
    if FORMULA == "decoupled":
        share, inverse = some, some / tl.maximum(negatives, 1.0)
    else:
        inverse = some / (negatives + 1.0)
        share = negatives * inverse
    pull = weight * inverse
    return share * weighed - pull * neg_sum, -pull, share, share * 0.0
