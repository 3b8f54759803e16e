"""After the chunks of backward: the gradients of the scale and the offsets, and the unit of dx, dy.

One launch. The gradient of the scale is made of vectors, without another sum over the plane. Under
rules (TOLD) the plane's part is what ``line_sums`` has added up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import Problem, Statistics, Upstream
from mxm_kernels.backends.triton.line_sums import LineSums
from mxm_kernels.backends.triton.unit import (
    Unit,
    exponent_of,
    factor_of,
    lower_block,
    power_of_two,
    times_power,
)


@triton.jit
def _dot(a, b, length, factor, BLOCK: tl.constexpr):
    """Sum of factor a times b, in a fixed order."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < length
        total += (tl.load(a + place, mask=inside, other=0.0) * factor) * tl.load(
            b + place, mask=inside, other=0.0
        )
    return tl.sum(total, axis=0)


@triton.jit
def _dot_of_products(told, positives, pairs, images, factor, BLOCK: tl.constexpr):
    """Sum of dS of the positive pairs times factor S without offsets, in a fixed order."""
    offsets, pair_dS, owners, pair_texts = told[0], told[1], told[5], told[6]
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, pairs, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        inside = slot < pairs
        i = tl.load(owners + slot, mask=inside, other=0)
        j = tl.load(pair_texts + slot, mask=inside, other=0)
        S = tl.load(positives + slot, mask=inside, other=0.0)
        S -= tl.load(offsets + i) + tl.load(offsets + images + j)
        total += S * factor * tl.load(pair_dS + slot, mask=inside, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def store_offset_gradients(
    of_rows, pair_dS, first_positives, doffsets, block, rows, exponent, BLOCK: tl.constexpr
):
    """Sums of dS of a block of rows times 2^exponent: of the plane, and of their positives."""
    row = block * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    total = tl.load(of_rows + row, mask=inside, other=0.0)
    first = tl.load(first_positives + row, mask=inside, other=0)
    count = tl.load(first_positives + row + 1, mask=inside, other=0) - first
    for k in range(tl.max(count, axis=0)):
        total += tl.load(pair_dS + first + k, mask=k < count, other=0.0)
    tl.store(doffsets + row, times_power(total, exponent), mask=inside)


@triton.jit(do_not_specialize=["positives_length", "rows", "images", "x_length", "y_length"])
def scale_gradient_kernel(
    positives,  # (positives_length,) S of every positive pair, twice
    dpositives,  # (positives_length,)
    mean,  # (rows,) of S by softmax over the negatives
    dn,  # (rows,)
    u,  # (rows,) the teacher's averages
    du,  # (rows,)
    neg_sum,  # (rows,) of S over the negatives, not read unless NEG_SUM
    dm,  # (rows,)
    scale,  # ()
    lowered,  # () int32, not read unless LOWERED
    dscale,  # () out
    dx,  # (x_length,) in and out
    dy,  # (y_length,) in and out
    told,  # vectors of ``Told``, not read unless TOLD
    positives_length,
    rows,
    images,
    x_length,
    y_length,
    TEACHER: tl.constexpr,
    NEG_SUM: tl.constexpr,
    TOLD: tl.constexpr,
    UNIT: tl.constexpr,
    LOWERED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """The first program: the gradient of the scale; the others take the unit out of dx and dy.

    Under rules the programs after them have blocks of the offsets' gradient.

    The gradient of the scale is sum dS S / s over parts, each of them of vectors: the
    negatives' is sum dn mean and the teacher's sum du u, since both are averages of S, and that of
    the sums over the negatives is sum dm neg_sum.
    """
    s = tl.load(scale)
    factor, R = factor_of(s, UNIT)
    if LOWERED:
        R += tl.load(lowered)
    block = tl.program_id(0) - 1
    x_blocks = tl.cdiv(x_length, BLOCK)
    if TOLD:
        exponent = 0
        if LOWERED:
            exponent = tl.load(lowered)
        of_offsets = block - x_blocks - tl.cdiv(y_length, BLOCK)
        if of_offsets >= 0:
            store_offset_gradients(
                told[3], told[1], told[7], told[4], of_offsets, rows, exponent, BLOCK_R
            )
            return
    if block < 0:
        # By the exponent of the scale first: the product of S and a gradient may be no float32.
        of_s = exponent_of(s)
        down = power_of_two(-of_s)
        mantissa = s * down
        if TOLD:
            known = _dot_of_products(told, positives, positives_length // 2, images, down, BLOCK)
            tl.store(dscale, times_power(known / mantissa + tl.load(told[2]), exponent))
        else:
            known = _dot(positives, dpositives, positives_length, down, BLOCK)
            known += _dot(mean, dn, rows, down, BLOCK)
            if TEACHER:
                known += _dot(u, du, rows, down, BLOCK)
            if NEG_SUM:
                known += _dot(neg_sum, dm, rows, down, BLOCK)
            total = known / mantissa * factor
            tl.store(dscale, times_power(total / mantissa, R - of_s))
    elif R != 0:
        if block < x_blocks:
            lower_block(dx, block, x_length, R, BLOCK)
        else:
            lower_block(dy, block - x_blocks, y_length, R, BLOCK)


@triton.jit(do_not_specialize=["rows"])
def offset_gradients_kernel(
    of_rows,  # (rows,) the sums of dS over the plane
    pair_dS,  # (positives,) dS of the positives
    offsets,  # (rows + 1,) int64
    lowered,  # () int32, not read unless LOWERED
    doffsets,  # (rows,) out
    rows,
    LOWERED: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """The gradient of the offsets, where no other kernel gives it."""
    exponent = 0
    if LOWERED:
        exponent = tl.load(lowered)
    block = tl.program_id(0)
    store_offset_gradients(of_rows, pair_dS, offsets, doffsets, block, rows, exponent, BLOCK_R)


BLOCKS = {"BLOCK": 4096, "BLOCK_R": 128}


def offset_gradients(p: Problem, of_rows: Tensor, pair_dS: Tensor, unit: Unit) -> Tensor:
    """(R,) the gradient of the offsets, from sums of dS and dS of the positives (2 P,)."""
    made, size = torch.empty_like(of_rows), BLOCKS["BLOCK_R"]
    offset_gradients_kernel[(triton.cdiv(len(made), size),)](
        of_rows, pair_dS, p.offsets, unit.arguments()[1], made, len(made),
        LOWERED=unit.lowered is not None, BLOCK_R=size,
    )  # fmt: skip
    return made


class Told(NamedTuple):
    """What the gradients of the scale and of the offsets are made of under rules."""

    offsets: Tensor  # (R,) of S
    pair_dS: Tensor  # (2 P,) dS of every positive pair without T's part, at both of its places
    of_plane: Tensor  # () the sum of dS times the products, but for ``pair_dS``
    of_rows: Tensor  # (R,) the sums of dS, but for ``pair_dS``, or empty
    doffsets: Tensor  # (R,) out, or empty
    owners: Tensor  # (2 P,)
    pair_texts: Tensor  # (P,)
    first_positives: Tensor  # (R + 1,)

    @classmethod
    def of(cls, p: Problem, offsets: Tensor, pair_dS: Tensor, sums: LineSums) -> Told:
        """With room for the gradient."""
        return cls(
            offsets,
            pair_dS,
            sums.plane,
            sums.rows,
            torch.empty_like(sums.rows),
            p.owners,
            p.pair_texts,
            p.offsets,
        )


def scale_gradient(
    p: Problem,
    statistics: Statistics,
    upstream: Upstream,
    unit: Unit,
    late: list[Tensor],
    told: Told | None,
) -> Tensor:
    """The gradient of the scale; the unit goes from the gradients that still carry it, ``late``.

    That of the offsets is written into ``told``.
    """
    dscale = torch.empty_like(p.scale)
    # A part of a larger matrix may have none, and wants no gradient of the scale.
    mean = statistics.neg_mean if len(statistics.neg_mean) else upstream.neg_lse
    dx, dy = late or (dscale[None][:0],) * 2
    programs = 1 + sum(triton.cdiv(d.numel(), BLOCKS["BLOCK"]) for d in (dx, dy))
    if told is not None:
        programs += triton.cdiv(len(told.doffsets), BLOCKS["BLOCK_R"])
    scale_gradient_kernel[(programs,)](
        statistics.positives, upstream.positives, mean, upstream.neg_lse,
        statistics.teacher_mean, upstream.teacher_mean, statistics.neg_sum, upstream.neg_sum,
        *unit.arguments(), dscale, dx, dy, None if told is None else tuple(told),
        2 * p.pairs, len(upstream.neg_lse), len(p.x), dx.numel(), dy.numel(),
        TEACHER=p.has_soft, NEG_SUM=len(upstream.neg_sum) > 0, TOLD=told is not None,
        **unit.constants(), **BLOCKS, num_warps=8,
    )  # fmt: skip
    return dscale
