"""The power of two that dS carries so that it stays in its dtype, chosen on the device.

Upstream gradients d and the scale s may each be 1e-38 or 1e38 where their product is an ordinary
number, and float16 holds no dS below 6e-8. Three steps, none of which waits for the device:

    raise_vectors   d 2^-E, the greatest in [1, 2), in one launch.
    factor_of       s = u 2^R in every kernel that multiplies by it, u an ordinary number.
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
KEPT = tl.constexpr(0)  # s itself: R = 0
BOUNDED = tl.constexpr(1)  # s itself where it lies within 2^-40 and 2^40
RAISED = tl.constexpr(2)  # for float16: 2^10 to 2^11, four terms of size 2 times it are below 65504
# dS shares one exponential between rows and columns, for which d is multiplied by a number down to
# exp(-40) = 2^-58 (``exponentials.GRADIENT_RANGE``).
ORDINARY = tl.constexpr(40)
TOP = tl.constexpr(10)
RAISE = tl.constexpr(2.0**10)  # 2^TOP, which ``power_of_two`` does not make of a constant
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
def factor_of(s, UNIT: tl.constexpr):
    """U and R with s = u 2^R: the kernels multiply upstream gradients by u."""
    u, R = s, 0
    if UNIT != KEPT:
        shift = exponent_of(s)
        mantissa = s * power_of_two(-shift)
        if UNIT == RAISED:
            u = mantissa * RAISE
            R = shift - TOP
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


@triton.jit(do_not_specialize=["l0", "l1", "l2", "l3", "l4"])
def raise_kernel(
    a0,  # (l0,)
    a1,  # (l1,)
    a2,  # (l2,)
    a3,  # (l3,)
    a4,  # (l4,), not read unless FIVE
    raised,  # (l0 + l1 + l2 + l3 + l4,) out, one after the other
    lowered,  # () out, int32
    l0,
    l1,
    l2,
    l3,
    l4,
    FIVE: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Vectors times 2^-E; where the greatest is an ordinary number E is 0, but for float16."""
    top = tl.maximum(_greatest(a0, l0, BLOCK), _greatest(a1, l1, BLOCK))
    top = tl.maximum(top, _greatest(a2, l2, BLOCK))
    if FIVE:
        top = tl.maximum(top, _greatest(a4, l4, BLOCK))
    E = exponent_of(tl.maximum(top, _greatest(a3, l3, BLOCK)))
    if UNIT != RAISED:
        E = tl.where((E >= -ORDINARY) & (E <= ORDINARY), 0, E)
    power = power_of_two(-E)
    _raised(a0, raised, l0, power, BLOCK)
    _raised(a1, raised + l0, l1, power, BLOCK)
    _raised(a2, raised + l0 + l1, l2, power, BLOCK)
    _raised(a3, raised + l0 + l1 + l2, l3, power, BLOCK)
    if FIVE:
        _raised(a4, raised + l0 + l1 + l2 + l3, l4, power, BLOCK)
    tl.store(lowered, E)


RAISE_BLOCK = 4096


def raise_vectors(vectors: Sequence[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Up to five vectors times 2^-E; E () int32. ``dtype`` is that of the features."""
    given: list[Tensor | None] = [*vectors, *[vectors[0].new_empty(0)] * (5 - len(vectors))]
    lengths = [0 if v is None else v.numel() for v in given]
    if not lengths[4]:
        given[4] = None
    raised = vectors[0].new_empty(sum(lengths), dtype=torch.float32)
    lowered = raised.new_empty((), dtype=torch.int32)
    raise_kernel[(1,)](
        *given, raised, lowered, *lengths, FIVE=lengths[4] > 0, UNIT=_kind(dtype),
        BLOCK=RAISE_BLOCK, num_warps=8,
    )  # fmt: skip
    return list(raised.split(lengths)[: len(vectors)]), lowered


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
    lowered,  # () int32, not read unless LOWERED
    length,
    UNIT: tl.constexpr,
    LOWERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A sum times 2^(E + R); it is not read where that is 1."""
    _, R = factor_of(tl.load(scale), UNIT)
    if LOWERED:
        R += tl.load(lowered)
    if R != 0:
        lower_block(a, tl.program_id(0), length, R, BLOCK)


LOWER_BLOCK = 4096


class Unit(NamedTuple):
    """The power of two that dS carries, as arguments of the kernels that multiply by it."""

    scale: Tensor  # ()
    kind: int  # KEPT, BOUNDED or RAISED
    lowered: Tensor | None  # () int32 E, where the vectors were raised
    early: bool = False  # whether it has to go before sums are rounded to the dtype of the features

    def arguments(self) -> tuple[Tensor, Tensor]:
        """Scale and E, for which anything stands where there is none."""
        return self.scale, self.scale if self.lowered is None else self.lowered

    def constants(self) -> dict[str, int | bool]:
        """The constexpr arguments of these kernels."""
        return {"UNIT": self.kind, "LOWERED": self.lowered is not None}

    def lower(self, total: Tensor) -> Tensor:
        """Take it out of a contiguous sum, in place, without a wait for the device."""
        if total.numel():
            lower_kernel[(triton.cdiv(total.numel(), LOWER_BLOCK),)](
                total, *self.arguments(), total.numel(), **self.constants(), BLOCK=LOWER_BLOCK,
                num_warps=8,
            )  # fmt: skip
        return total


def _kind(dtype: torch.dtype) -> int:
    """How upstream gradients are bounded for features of ``dtype``."""
    return (RAISED if dtype == torch.float16 else BOUNDED).value


def unit_for(x: Tensor, scale: Tensor, lowered: Tensor | None) -> Unit:
    """The unit of dS for features x (M, D).

    It is taken out early, before sums are rounded, in two cases. float16 is too narrow for sums
    that carry it. The interpreter does not round bfloat16 (``launch.workspace_dtype``).
    """
    early = x.dtype == torch.float16 or launch.workspace_dtype(x.dtype, x.device) != x.dtype
    return Unit(scale, _kind(x.dtype), lowered, early)
