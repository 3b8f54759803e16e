"""A teacher in float8 in plain PyTorch, any device and dtype: the definition of its rounding.

    (a, b, t, largest) -> (a 2^p, b 2^q, t 2^-(p + q))

The powers p and q move the largest entry of each matrix to the top of float8's range (e4m3: 3 bits
of mantissa, 448 at most, normal from 2^-6), which loses nothing of the others but what underflows.
All of it stays on the device. Where a feature is not finite, t is NaN: float8 features cannot say.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
_TOP = 0.875  # 448 / 512
_BLOCK = 1 << 24  # numbers that are widened at a time: 64 MiB of float32


def float8_teacher(
    a: Tensor, b: Tensor, t: Tensor, largest: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Features (M, D'), (N, D') rounded to float8, and () their scale.

    ``largest`` (2,) holds a magnitude of each matrix, which none of its entries exceeds. The
    features that come with a scale of NaN have no meaning.
    """
    mantissa, exponent = torch.frexp(largest)
    powers = 9 - exponent.to(torch.int64) - (mantissa > _TOP).to(torch.int64)
    most = 126 if largest.dtype == torch.float32 else 1022
    powers = powers.clamp(-most, most)
    factors = _power_of_two(powers, largest.dtype)
    rounded = [_round(f, factor) for f, factor in zip((a, b), factors, strict=True)]
    # In float64 and by halves, since the two may be as large as t is small, or the other way.
    half = powers.sum() >> 1
    folded = t.double() * _power_of_two(-half, torch.float64)
    folded = folded * _power_of_two(half - powers.sum(), torch.float64)
    limits = torch.finfo(t.dtype)
    folded = folded.clamp(limits.tiny, limits.max).to(t.dtype)
    sound = torch.isfinite(largest).all() & (t > 0)
    return rounded[0], rounded[1], torch.where(sound, folded, torch.nan)


def _power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """2^exponent, made of its bits: a GPU's power function may be off."""
    if dtype == torch.float32:
        return ((exponent + 127).to(torch.int32) << 23).view(dtype)
    return ((exponent + 1023) << 52).view(dtype)


def _round(features: Tensor, factor: Tensor) -> Tensor:
    """Features times a power of two, rounded once."""
    out = torch.empty(features.shape, dtype=FLOAT8, device=features.device)
    height = max(1, _BLOCK // features.shape[1])
    for rounded, block in zip(out.split(height), features.split(height), strict=True):
        rounded.copy_(block.to(factor.dtype) * factor)
    return out
