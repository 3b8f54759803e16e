"""Before the tiles: the unit of every row of features, and S of every positive pair, in one launch.

The units are those of ``fixed_point``. A row that is not finite has the unit NaN. Sums over a row
would not show all such rows: a feature of -inf makes exp(S) vanish.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import Problem, Statistics
from mxm_kernels.backends.triton.fixed_point import LARGEST
from mxm_kernels.backends.triton.positives import BLOCK, store_positives
from mxm_kernels.backends.triton.tile import teacher_arguments

ROWS = {"BLOCK_R": 16, "ROW_D": 128}


@triton.jit
def _store_units(a, rows, D, block, units, BLOCK_R: tl.constexpr, ROW_D: tl.constexpr):
    """|a_i| / sqrt(32767) of a block of rows, without a square that leaves float32."""
    row = block * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    lane = tl.arange(0, ROW_D)
    places = a + row.to(tl.int64)[:, None] * D + lane[None, :]
    top = tl.zeros((BLOCK_R,), tl.float32)
    finite = top  # 0, or NaN where a feature is not finite
    for start in range(0, D, ROW_D):
        mask = inside[:, None] & (lane[None, :] < D - start)
        value = tl.load(places + start, mask=mask, other=0.0).to(tl.float32)
        top = tl.maximum(top, tl.max(tl.abs(value), 1))
        finite += tl.sum(value * 0.0, 1)
    factor = 1.0 / tl.where(top > 0, top, 1.0)
    total = tl.zeros((BLOCK_R,), tl.float32)
    for start in range(0, D, ROW_D):
        mask = inside[:, None] & (lane[None, :] < D - start)
        value = tl.load(places + start, mask=mask, other=0.0).to(tl.float32) * factor[:, None]
        total += tl.sum(value * value, 1)
    unit = top * tl.sqrt(total / LARGEST) + finite
    tl.store(units + row, unit, mask=inside)


@triton.jit(do_not_specialize=["pairs", "M", "N", "blocks"])
def units_kernel(
    x,  # (M, D)
    y,  # (N, D)
    teacher_x,  # (M, TEACHER_D)
    teacher_y,  # (N, TEACHER_D)
    scale,  # ()
    owners,  # (2 pairs,) int64
    pair_texts,  # (pairs,) int64
    slot_places,  # (pairs,) int64
    units,  # (1 or 2, M + N) out
    positives,  # (2 pairs,) out
    logit_offsets,  # (M + N,), not read unless TOLD
    pairs,
    M,
    N,
    D,
    TEACHER_D,
    blocks,  # programs that have rows of one pair of matrices
    TEACHER: tl.constexpr,
    TOLD: tl.constexpr,
    BLOCK_R: tl.constexpr,
    ROW_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PAIR_D: tl.constexpr,
):
    """First blocks of rows of x and y, then of the teacher's, then blocks of pairs."""
    program, x_blocks = tl.program_id(0), tl.cdiv(M, BLOCK_R)
    if program < x_blocks:
        _store_units(x, M, D, program, units, BLOCK_R, ROW_D)
    elif program < blocks:
        _store_units(y, N, D, program - x_blocks, units + M, BLOCK_R, ROW_D)
    program -= blocks
    if TEACHER:
        of_teacher = units + M + N
        if program >= 0:
            if program < x_blocks:
                _store_units(teacher_x, M, TEACHER_D, program, of_teacher, BLOCK_R, ROW_D)
            elif program < blocks:
                block = program - x_blocks
                _store_units(teacher_y, N, TEACHER_D, block, of_teacher + M, BLOCK_R, ROW_D)
        program -= blocks
    if program >= 0:
        store_positives(
            x, y, scale, owners, pair_texts, slot_places, positives, logit_offsets,
            pairs, M, D, program, TOLD, BLOCK_P, PAIR_D,
        )  # fmt: skip


def units_and_positives(p: Problem, made: Statistics, offsets: Tensor | None) -> Tensor:
    """(1 or 2, M + N) units, in ``made`` where they are kept; the positives are written into it.

    ``offsets`` (M + N,) are those of S, None of a problem without rules.
    """
    M, N = p.x.shape[0], p.y.shape[0]
    units = made.units
    if not len(units):
        units = p.x.new_empty((p.matrices, M + N), dtype=torch.float32)
    teacher_x, teacher_y, _ = teacher_arguments(p)
    blocks = triton.cdiv(M, ROWS["BLOCK_R"]) + triton.cdiv(N, ROWS["BLOCK_R"])
    programs = p.matrices * blocks + triton.cdiv(p.pairs, BLOCK["BLOCK_P"])
    units_kernel[(programs,)](
        p.x, p.y, teacher_x, teacher_y, p.scale, p.owners, p.pair_texts, p.slot_places,
        units, made.positives, offsets, p.pairs, M, N, p.x.shape[1], teacher_x.shape[1], blocks,
        TEACHER=p.has_teacher, TOLD=offsets is not None, **ROWS, **BLOCK,
    )  # fmt: skip
    return units
