"""The positive pairs, apart from the tiles: P numbers need no M x N walk.

Inside the tiles a positive only has to be left out. Storing S and loading its gradient there,
through a tile of pointers, made every setting spill registers (840 to 1,936 bytes per thread on
sm_90); blocks of pairs cost 2 P D operations and balance themselves however uneven the groups
are. In forward they are in the launch before the tiles (``rows_of_features``); in backward a kernel
of their own overwrites their entries of dS.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import Problem
from mxm_kernels.backends.tiles import Span
from mxm_kernels.backends.triton.tile import teacher_arguments, valid_scale
from mxm_kernels.backends.triton.unit import Unit, factor_of

# 32 pairs a program: pair_gradient spills 16 bytes on sm_80 in float16 (Triton 3.6.0).
BLOCK = {"BLOCK_P": 16, "PAIR_D": 128}


@triton.jit
def pair_products(
    x,  # (M, D)
    y,  # (N, D)
    images,  # (BLOCK_P,) int64
    texts,  # (BLOCK_P,) int64
    inside,  # (BLOCK_P,)
    D,
    PAIR_D: tl.constexpr,
):
    """Products <x_i, y_j> of a block of pairs, (BLOCK_P,) float32."""
    lane = tl.arange(0, PAIR_D)
    total = tl.zeros((images.shape[0], PAIR_D), tl.float32)
    for start in range(0, D, PAIR_D):
        mask = inside[:, None] & (lane[None, :] < D - start)
        a = tl.load(x + images[:, None] * D + start + lane[None, :], mask=mask, other=0.0)
        b = tl.load(y + texts[:, None] * D + start + lane[None, :], mask=mask, other=0.0)
        total += a.to(tl.float32) * b.to(tl.float32)
    return tl.sum(total, axis=1)


@triton.jit
def store_positives(
    x,  # (M, D)
    y,  # (N, D)
    scale,  # ()
    owners,  # (2 pairs,) int64, the image rows of the slots first
    pair_texts,  # (pairs,) int64
    slot_places,  # (pairs,) int64
    positives,  # (2 pairs,) out
    logit_offsets,  # (M + N,), not read unless TOLD
    pairs,
    M,
    D,
    block,
    TOLD: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PAIR_D: tl.constexpr,
):
    """S of a block of positive pairs, at both places of each.

    NaN for what is infinite, which only a feature that is not finite can make it.
    """
    slot = block * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = slot < pairs
    i = tl.load(owners + slot, mask=inside, other=0)
    j = tl.load(pair_texts + slot, mask=inside, other=0)
    S = pair_products(x, y, i, j, inside, D, PAIR_D) * valid_scale(scale)
    if TOLD:
        S += tl.load(logit_offsets + i) + tl.load(logit_offsets + M + j)
    S = tl.where(tl.abs(S) == float("inf"), float("nan"), S)
    tl.store(positives + slot, S, mask=inside)
    place = tl.load(slot_places + slot, mask=inside, other=0)
    tl.store(positives + pairs + place, S, mask=inside)


@triton.jit
def store_both(numbers, one, other, value, mask):
    """Store numbers of pairs at both of their places in the list of positives."""
    tl.store(numbers + one, value, mask=mask)
    tl.store(numbers + other, value, mask=mask)


@triton.jit(do_not_specialize=["pairs", "M", "first_row", "last_row", "first_col", "last_col"])
def pair_gradient_kernel(
    teacher_x,  # (M, TEACHER_D)
    teacher_y,  # (N, TEACHER_D)
    teacher_scale,  # ()
    owners,  # (2 pairs,) int64, the image rows of the slots first
    pair_texts,  # (pairs,) int64
    slot_places,  # (pairs,) int64
    t,  # (M + N,)
    dpositives,  # (2 pairs,)
    du,  # (M + N,)
    scale,  # ()
    dS,  # (height, stride) out
    told,  # (M + N,) offsets of T, and (2 pairs,) out; not read unless TOLD
    pairs,
    M,
    TEACHER_D,
    first_row,
    last_row,
    first_col,
    last_col,
    stride,
    TEACHER: tl.constexpr,
    TOLD: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PAIR_D: tl.constexpr,
):
    """Positive pairs of the workspace: u dS, as in the tiles, summed in float32 before rounding.

    Under rules the pair's own part of dS, without T's, is stored at both places of the list too.
    """
    slot = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = slot < pairs
    i = tl.load(owners + slot, mask=inside, other=-1)
    j = tl.load(pair_texts + slot, mask=inside, other=-1)
    here = (i >= first_row) & (i < last_row) & (j >= first_col) & (j < last_col)
    if tl.max(here.to(tl.int32), axis=0) > 0:
        place = tl.load(slot_places + slot, mask=here, other=0)
        grad = tl.load(dpositives + slot, mask=here, other=0.0)
        grad += tl.load(dpositives + pairs + place, mask=here, other=0.0)
        if TOLD:
            store_both(told[1], slot, pairs + place, grad, here)
        if TEACHER:
            T = pair_products(teacher_x, teacher_y, i, j, here, TEACHER_D, PAIR_D)
            T *= tl.load(teacher_scale)
            if TOLD:
                T += tl.load(told[0] + i, mask=here, other=0.0)
                T += tl.load(told[0] + M + j, mask=here, other=0.0)
            # T is no greater than its normalisers but by the rounding of another order of sums.
            of_row = T - tl.load(t + i, mask=here, other=0.0)
            of_col = T - tl.load(t + M + j, mask=here, other=0.0)
            row_share = tl.exp(tl.minimum(of_row, 0.0, propagate_nan=tl.PropagateNan.ALL))
            col_share = tl.exp(tl.minimum(of_col, 0.0, propagate_nan=tl.PropagateNan.ALL))
            grad += row_share * tl.load(du + i, mask=here, other=0.0)
            grad += col_share * tl.load(du + M + j, mask=here, other=0.0)
        u, _ = factor_of(tl.load(scale), UNIT)
        stored = (grad * u).to(dS.dtype.element_ty)
        tl.store(dS + (i - first_row) * stride + (j - first_col), stored, mask=here)


def positive_gradients(
    problem: Problem,
    dpositives: Tensor,
    unit: Unit,
    workspace: Tensor,
    rows: Span,
    cols: Span,
    teacher_terms: tuple[Tensor, Tensor] | None = None,
    told: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Write u dS of the positive pairs into ``workspace``, which has rows x cols of it.

    ``dpositives`` are (2 P,); ``teacher_terms`` are t and du (M + N,), read where T is summed.
    ``told`` of a problem with rules are the offsets of T (M + N,) and a vector (2 P,) that gets
    dS of every pair, without T's part.
    """
    p, pairs = problem, problem.pairs
    if not pairs:
        return
    teacher_x, teacher_y, teacher_scale = teacher_arguments(p)
    t, du = teacher_terms or (dpositives,) * 2
    pair_gradient_kernel[(triton.cdiv(pairs, BLOCK["BLOCK_P"]),)](
        teacher_x, teacher_y, teacher_scale, p.owners, p.pair_texts, p.slot_places,
        t, dpositives, du, unit.scale, workspace, told,
        pairs, p.x.shape[0], teacher_x.shape[1], *rows, *cols, workspace.stride(0),
        TEACHER=p.has_soft, TOLD=told is not None, UNIT=unit.kind, **BLOCK,
    )  # fmt: skip
