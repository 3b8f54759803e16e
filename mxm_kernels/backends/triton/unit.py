"""The power of two that dS carries so that it stays in its dtype, chosen on the device.

Upstream gradients d, their common factor g and the scale s may each be 1e-38 or 1e38 where their
product is an ordinary number, and float16 holds no dS below 6e-8. Three steps, none of which waits
for the device:

    raise_vectors   d 2^-E, the greatest in [1, 2), in one launch. It runs for float16, and where d
                    comes from outside; ``mixed_loss`` makes d that are ordinary numbers.
    factor_of       s g = u 2^R in every kernel that multiplies by it, u an ordinary number.
    lower           a sum times 2^(E + R), where that is not 1.

Exponents are integers: a power of two out of float32's range is never formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.triton import launch

# u of ``factor_of``.
KEPT = tl.constexpr(0)  # s g itself: R = 0
BOUNDED = tl.constexpr(1)  # s g itself where it lies within 2^-40 and 2^40
RAISED = tl.constexpr(2)  # for float16: 2^10 to 2^11, four terms of size 2 times it are below 65504
# dS shares one exponential between rows and columns, for which d is multiplied by a number down to
# exp(-40) = 2^-58 (``exponentials.GRADIENT_RANGE``).
ORDINARY = tl.constexpr(40)
TOP = tl.constexpr(10)
MOST = tl.constexpr(252)  # a power of two beyond it takes every float32 to 0 or to infinity


@triton.jit
def exponent_of(a):
    """E of |a| in [2^E, 2^(E + 1)), within -126 and 126; -126 of denormal numbers and 0."""
    bits = a.to(tl.int32, bitcast=True)
    return tl.minimum(tl.maximum(((bits >> 23) & 255) - 127, -126), 126)


@triton.jit
def power_of_two(e):
    """2^e, -126 <= e <= 127, made of its bits."""
    return ((e + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def times_power(a, e):
    """A times 2^e, in two steps that go the same way: nothing is lost between them."""
    e = tl.minimum(tl.maximum(e, -MOST), MOST)
    half = e >> 1
    return a * power_of_two(half) * power_of_two(e - half)


@triton.jit
def factor_of(s, g, UNIT: tl.constexpr):
    """What upstream gradients are multiplied by, and R."""
    u, R = s * g, 0
    if UNIT != KEPT:
        of_s, of_g = exponent_of(s), exponent_of(g)
        mantissa = (s * power_of_two(-of_s)) * (g * power_of_two(-of_g))
        shift = of_s + of_g
        if UNIT == RAISED:
            more = exponent_of(mantissa)  # a denormal g leaves it below 1
            u = mantissa * power_of_two(-more + TOP)
            R = shift + more - TOP
        else:
            ordinary = (shift >= -ORDINARY) & (shift <= ORDINARY)
            u = tl.where(ordinary, u, mantissa)
            R = tl.where(ordinary, 0, shift)
    return u, R


@triton.jit
def _greatest(a, length, BLOCK: tl.constexpr):
    """The greatest magnitude in a, at least 0."""
    top = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        top = tl.maximum(top, tl.abs(tl.load(a + place, mask=place < length, other=0.0)))
    return tl.max(top, axis=0)


@triton.jit
def _raised(a, out, length, power, BLOCK: tl.constexpr):
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        value = tl.load(a + place, mask=place < length, other=0.0)
        tl.store(out + place, value * power, mask=place < length)


_LENGTHS = ["l0", "l1", "l2", "l3", "l4"]


@triton.jit(do_not_specialize=_LENGTHS)
def raise_kernel(
    a0, a1, a2, a3, a4,  # (l0,) ... (l4,)
    raised,  # (l0 + ... + l4,) out, one after the other; without the last two if FACTORS
    lowered,  # () out, int32
    l0, l1, l2, l3, l4,
    FACTORS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Vectors times 2^-E. FACTORS: the last two multiply the others, and stay as they are."""
    top = tl.maximum(_greatest(a0, l0, BLOCK), _greatest(a1, l1, BLOCK))
    top = tl.maximum(top, _greatest(a2, l2, BLOCK))
    last = tl.maximum(_greatest(a3, l3, BLOCK), _greatest(a4, l4, BLOCK))
    if FACTORS:
        E = exponent_of(top) + tl.maximum(exponent_of(last), 0)
        E = tl.minimum(E, 126)
    else:
        E = exponent_of(tl.maximum(top, last))
    power = power_of_two(-E)
    _raised(a0, raised, l0, power, BLOCK)
    _raised(a1, raised + l0, l1, power, BLOCK)
    _raised(a2, raised + l0 + l1, l2, power, BLOCK)
    if not FACTORS:
        _raised(a3, raised + l0 + l1 + l2, l3, power, BLOCK)
        _raised(a4, raised + l0 + l1 + l2 + l3, l4, power, BLOCK)
    tl.store(lowered, E)


RAISE_BLOCK = 4096


def raise_vectors(
    vectors: Sequence[Tensor], factors: Sequence[Tensor] = ()
) -> tuple[list[Tensor], Tensor]:
    """Up to five vectors times 2^-E; E () int32.

    With two ``factors`` up to three, E such that none times a factor is greater than 4.
    """
    spare = [vectors[0].new_empty(0)] * (5 - len(vectors) - len(factors))
    given = [*vectors, *spare, *factors]
    lengths = [v.numel() for v in given]
    raised = vectors[0].new_empty(sum(v.numel() for v in vectors), dtype=torch.float32)
    lowered = raised.new_empty((), dtype=torch.int32)
    raise_kernel[(1,)](
        *given, raised, lowered, *lengths, FACTORS=len(factors) > 0, BLOCK=RAISE_BLOCK, num_warps=8
    )
    parts = raised.split([v.numel() for v in vectors])
    return [part.view(v.shape) for part, v in zip(parts, vectors, strict=True)], lowered


@triton.jit
def lower_block(a, block, length, R, BLOCK: tl.constexpr):
    """A block of a times 2^R, in place."""
    place = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(a + place, mask=place < length, other=0.0).to(tl.float32)
    tl.store(a + place, times_power(value, R).to(a.dtype.element_ty), mask=place < length)


@triton.jit
def lower_kernel(
    a,  # (length,) in and out
    scale,  # ()
    factor,  # ()
    lowered,  # () int32, not read unless LOWERED
    length,
    UNIT: tl.constexpr,
    LOWERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A sum times 2^(E + R); it is not read where that is 1."""
    _, R = factor_of(tl.load(scale), tl.load(factor), UNIT)
    if LOWERED:
        R += tl.load(lowered)
    if R != 0:
        lower_block(a, tl.program_id(0), length, R, BLOCK)


LOWER_BLOCK = 4096


class Unit(NamedTuple):
    """What dS carries: the arguments of the kernels that put it there and take it out."""

    scale: Tensor  # ()
    factor: Tensor  # () g
    kind: int  # KEPT, BOUNDED or RAISED
    lowered: Tensor | None  # () int32 E, where the vectors were raised
    early: bool = False  # whether it has to go before sums are rounded to the dtype of the features

    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, factor and E, for which anything stands where there is none."""
        return self.scale, self.factor, self.scale if self.lowered is None else self.lowered

    def constants(self) -> dict[str, int | bool]:
        """What the kernels are compiled for."""
        return {"UNIT": self.kind, "LOWERED": self.lowered is not None}

    def lower(self, total: Tensor) -> Tensor:
        """Take it out of a contiguous sum, in place, without a wait for the device."""
        if total.numel():
            lower_kernel[(triton.cdiv(total.numel(), LOWER_BLOCK),)](
                total, *self.arguments(), total.numel(), **self.constants(), BLOCK=LOWER_BLOCK,
                num_warps=8,
            )  # fmt: skip
        return total


def unit_for(x: Tensor, scale: Tensor, factor: Tensor | None, lowered: Tensor | None) -> Unit:
    """What dS of features x (M, D) carries; without a factor g is 1.

    It is taken out early, before sums are rounded, in two cases. float16 is too narrow for sums
    that carry it. The interpreter does not round bfloat16 (``launch.workspace_dtype``).
    """
    factor = torch.ones_like(scale) if factor is None else factor
    low = x.dtype == torch.float16
    early = low or launch.workspace_dtype(x.dtype, x.device) != x.dtype
    return Unit(scale, factor, (RAISED if low else BOUNDED).value, lowered, early)
