"""The loss of the rows of one direction, with its derivatives, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mxm_kernels.backends.problem import RowLosses, RowProblem
from mxm_kernels.backends.triton.tile import sigmoid, softplus

BLOCK = 128


@triton.jit(do_not_specialize=["rows", "hard", "soft"])
def mixed_rows_kernel(
    n,  # (rows,)
    S,  # (pairs,)
    u,  # (rows,), not read without SOFT
    weights,  # (pairs,)
    offsets,  # (rows + 1,) int64
    losses,  # (rows,) out
    dn,  # (rows,) out
    dS,  # (pairs,) out
    rows,
    hard,
    soft,
    SOFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row in each lane, which walks its own positives."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    first = tl.load(offsets + row, mask=inside, other=0)
    count = tl.load(offsets + row + 1, mask=inside, other=0) - first
    most = tl.max(count, axis=0)
    N = tl.load(n + row, mask=inside, other=0.0)
    loss = tl.zeros((BLOCK,), tl.float32)
    pulled = tl.zeros((BLOCK,), tl.float32)
    top = N
    for k in range(most):
        here = k < count
        value = tl.load(S + first + k, mask=here, other=0.0)
        weight = hard * tl.load(weights + first + k, mask=here, other=0.0)
        margin = N - value
        loss += tl.where(here, weight * softplus(margin), 0.0)
        pull = tl.where(here, weight * sigmoid(margin), 0.0)
        pulled += pull
        tl.store(dS + first + k, -pull, mask=here)
        top = tl.where(here, tl.maximum(top, value), top)
    if SOFT:
        of_n = tl.exp(N - top)
        total = of_n
        for k in range(most):
            here = k < count
            value = tl.load(S + first + k, mask=here, other=0.0)
            total += tl.where(here, tl.exp(value - top), 0.0)
        loss += soft * (top + tl.log(total) - tl.load(u + row, mask=inside, other=0.0))
        share = soft / total
        pulled += share * of_n
        for k in range(most):
            here = k < count
            value = tl.load(S + first + k, mask=here, other=0.0)
            before = tl.load(dS + first + k, mask=here, other=0.0)
            tl.store(dS + first + k, before + share * tl.exp(value - top), mask=here)
    tl.store(losses + row, loss, mask=inside)
    tl.store(dn + row, pulled, mask=inside)


def mixed_rows(p: RowProblem, hard: float, soft: float) -> RowLosses:
    """Losses of the rows and their derivatives in n and S."""
    rows = p.n.shape[0]
    out = RowLosses(torch.empty_like(p.n), torch.empty_like(p.n), torch.empty_like(p.S))
    mixed_rows_kernel[(triton.cdiv(rows, BLOCK),)](
        p.n, p.S, p.u if soft else p.n, p.weights, p.offsets, *out, rows, hard, soft,
        SOFT=soft != 0, BLOCK=BLOCK,
    )  # fmt: skip
    return out
