"""The factor that dS carries so that nothing leaves the range of its dtype, chosen on the host.

dS is an upstream gradient d times exponentials, times the scale s. d may be 1e-38 (a saturated
loss, a small upstream gradient) or 1e38, and so may s, while their product is an ordinary number.
``unit_of`` gives a power of two that brings d to an ordinary size, ``multiply`` takes it out of the
sums again. Where d is ordinary the factor is 1 and costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Exponents of ordinary sizes. dS shares one exponential between rows and columns, for which d is
# multiplied by a number down to exp(-40) = 2**-58: 2**-40 leaves 2**-28 for the smaller of many d.
_ORDINARY = {torch.float32: 40, torch.float64: 400}
# Exponents of what comes otherwise: the inverse of the scale within these, so that dS times a logit
# is an ordinary number too, and sums of it stay in float32 at a scale of 1e38.
_LOWEST, _HIGHEST = -20, 60
_MOST = 800  # exponent of a power of two which, like the scale over it, is a Python float


def largest_of(vectors: Sequence[Tensor]) -> float:
    """The greatest magnitude among vectors; waits for their device."""
    every = torch.cat([v if v.ndim == 1 else v.flatten() for v in vectors])
    return float(torch.linalg.vector_norm(every, torch.inf)) if len(every) else 0.0


def unit_of(largest: float, scale: float, dtype: torch.dtype) -> float:
    """A power of two to multiply upstream gradients of size ``largest`` by.

    1 where they and the ``scale``, which dS times a logit has, are ordinary numbers of ``dtype``.
    """
    if not all(math.isfinite(v) and v != 0 for v in (largest, scale)):
        return 1.0
    size, of_scale = _exponent(largest), _exponent(scale)
    widest = _ORDINARY[dtype]
    if abs(size) <= widest and abs(of_scale) <= widest:
        return 1.0
    target = min(_HIGHEST, max(_LOWEST, -of_scale))
    return math.ldexp(1.0, min(_MOST, max(-_MOST, target - size)))


def _exponent(value: float) -> int:
    return math.frexp(value)[1]


def multiply(value: Tensor, factor: float) -> Tensor:
    """``value`` times ``factor``, in place, also where the dtype does not hold the factor itself.

    The steps go one way, so what the dtype holds of the result is not lost between them.
    """
    most = 2.0 ** (900 if value.dtype == torch.float64 else 100)
    while math.isfinite(factor) and abs(factor) > most:
        value, factor = value.mul_(most), factor / most
    while 0 < abs(factor) < 1 / most:
        value, factor = value.mul_(1 / most), factor * most
    return value.mul_(factor)
