"""The checkers: how far a result is from the float64 reference, and how far it may be."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT32_BOUND = 1e-5
FLOAT64_BOUND = 1e-10


def error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| in float64; infinite if not finite or misshapen."""
    if actual.shape != expected.shape or not bool(torch.isfinite(actual).all()):
        return float("inf")
    return float((actual.detach().cpu().double() - expected.detach().cpu().double()).norm())


def allowed(
    dtype: torch.dtype,
    expected: float,
    naive_error: float,
    magnitude: float = 0.0,
    rounding: float = 4.0,
    largest: float = 0.0,
) -> float:
    """The error allowed to a result computed from ``dtype`` features.

    The largest of: the relative bound (1e-10 for float64, 1e-5 for float32, two roundings for
    16 bits, of dS in the workspace and of the result) of ||expected||; twice the error of the
    naive dense computation in the same dtype, except in float64; and the rounding of the terms
    that are summed,
    ``rounding`` units of float32 (float64) of their ``magnitude``. And the reference rounds
    too: it forms 1 - p where a probability p is almost 1, so ``largest``, the size a gradient
    could have, is known to it within 1e-14.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if dtype == torch.float64:
        relative, naive_error = FLOAT64_BOUND, 0.0
    else:
        relative = FLOAT32_BOUND if dtype == torch.float32 else torch.finfo(dtype).eps
    terms = rounding * torch.finfo(wide).eps * magnitude
    return max(relative * expected, 2 * naive_error, terms, 1e-14 * largest)


def assert_as_good(
    name: str,
    actual: Tensor,
    expected: Tensor,
    naive: Tensor,
    dtype: torch.dtype,
    magnitude: float = 0.0,
    rounding: float = 4.0,
    largest: float = 0.0,
) -> None:
    """Hold ``actual`` to the float64 ``expected``; ``naive`` is dense, in the dtype under test."""
    size = float(expected.detach().double().norm())
    limit = allowed(dtype, size, error(naive, expected), magnitude, rounding, largest)
    wrong = error(actual, expected)
    assert wrong <= limit, f"{name}: error {wrong:.3g} of {size:.3g}, allowed {limit:.3g}"
