"""softplus and the sigmoid in the kernels, without a cancellation or an overflow."""

from __future__ import annotations

import triton
import triton.language as tl

from mxm_kernels.backends.triton.exponentials import exp


@triton.jit
def _log1p_over(e):
    """log(1 + e) / e, 0 <= e <= 1: the polynomial of ``csrc/vector.h``; log loses small terms."""
    p = e * 0.00536482641 - 0.030065801
    p = p * e + 0.0792045519
    p = p * e - 0.137538031
    p = p * e + 0.191536561
    p = p * e - 0.248571634
    p = p * e + 0.33321324
    p = p * e - 0.499996483
    return p * e + 1.0


@triton.jit
def softplus_with(x, e):
    """log(1 + exp(x)), given e = exp(-abs(x))."""
    # Not tl.maximum, which drops NaN.
    return tl.where(x < 0, 0.0, x) + e * _log1p_over(e)


@triton.jit
def sigmoid_with(x, e, weight):
    """``weight`` / (1 + exp(-x)), given e = exp(-abs(x)): never a cancellation or an overflow."""
    return tl.where(x < 0, weight * e, weight) / (1.0 + e)


@triton.jit
def softplus(x):
    """log(1 + exp(x))."""
    return softplus_with(x, exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return sigmoid_with(x, exp(-tl.abs(x)), 1.0)
