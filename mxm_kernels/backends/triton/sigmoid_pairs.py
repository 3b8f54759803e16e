"""The positives of the sigmoid loss: their part of the loss, of its gradients and of dS."""

from __future__ import annotations

import triton
import triton.language as tl

from mxm_kernels.backends.triton.exponentials import exp
from mxm_kernels.backends.triton.positives import pair_products, store_both
from mxm_kernels.backends.triton.sigmoid_terms import sigmoid_with, softplus_with
from mxm_kernels.backends.triton.tile import valid_scale
from mxm_kernels.backends.triton.unit import factor_of

_SPANS = ["M", "first_row", "last_row", "first_col", "last_col"]


@triton.jit(do_not_specialize=["pairs", "sums", *_SPANS])
def sigmoid_pairs_kernel(
    x,  # (M, D)
    y,  # (N, D)
    scale,  # ()
    bias,  # ()
    owners,  # (2 pairs,) int64, the image rows of the slots first
    pair_texts,  # (pairs,) int64
    slot_places,  # (pairs,) int64, not read unless TOLD
    weights,  # (M + N,), not read if WEIGHED
    pair_weights,  # (pairs,), not read unless WEIGHED
    told,  # (M + N,) offsets of S, and (2 pairs,) out; not read unless TOLD
    dS,  # (height, stride) out
    partial,  # (3, sums) out, a number for each program: as above, of the positives
    pairs,
    sums,
    M,
    D,
    first_row,
    last_row,
    first_col,
    last_col,
    stride,
    WEIGHED: tl.constexpr,
    TOLD: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PAIR_D: tl.constexpr,
):
    """The positives of the workspace: u dS, and their part of loss and gradients.

    Under rules dS itself is stored at both places of the list of positives too.
    """
    slot = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = slot < pairs
    i = tl.load(owners + slot, mask=inside, other=-1)
    j = tl.load(pair_texts + slot, mask=inside, other=-1)
    here = (i >= first_row) & (i < last_row) & (j >= first_col) & (j < last_col)
    s = valid_scale(scale)
    product = pair_products(x, y, i, j, here, D, PAIR_D)
    if WEIGHED:
        weight = tl.load(pair_weights + slot, mask=here, other=0.0)
    else:
        weight = tl.load(weights + i, mask=here, other=0.0)
        weight += tl.load(weights + M + j, mask=here, other=0.0)
    logit = product * s + tl.load(bias)
    if TOLD:
        logit += tl.load(told[0] + i, mask=here, other=0.0)
        logit += tl.load(told[0] + M + j, mask=here, other=0.0)
    margin = -logit
    e = exp(-tl.abs(margin))
    loss, grad = weight * softplus_with(margin, e), sigmoid_with(margin, e, -weight)
    if TOLD:
        place = tl.load(slot_places + slot, mask=here, other=0)
        store_both(told[1], slot, pairs + place, grad, here)
    line = partial + tl.program_id(0)
    tl.store(line, tl.sum(grad * product, axis=0))
    tl.store(line + sums, tl.sum(grad, axis=0))
    tl.store(line + 2 * sums, tl.sum(loss, axis=0))
    u, _ = factor_of(s, UNIT)
    stored = (grad * u).to(dS.dtype.element_ty)
    tl.store(dS + (i - first_row) * stride + (j - first_col), stored, mask=here)
