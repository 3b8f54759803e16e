"""Forward: one pass over the tiles of S and T gives the statistics of both directions.

The grid is P x Q programs. Program (p, q) takes row blocks p, p + P, ... and of each the
column blocks q, q + Q, ...; row statistics stay in registers, column statistics go to line p
of a scratch that only this program row touches, so no addition is atomic and two runs
give the same bits. Then the programs share out the positive pairs. A second kernel (``merge``)
merges the Q lines of the rows and the P lines of the columns in a fixed order.

A statistic is kept as (reference, sum of exp(value - reference)) for S over negatives, the
reference in powers of 2 and one for a whole block; for T there are also the sum of
exp(T - reference) S and, for diagnostics, of exp(T - reference) T: 2 numbers, or 5 or 6 with a
teacher. The functions below take how many there are as FIELDS, 2 to 4. Diagnostics keep one
number more, the maximum of S.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mxm_kernels.backends.interface import Memory, Problem, Statistics
from mxm_kernels.backends.tiles import split
from mxm_kernels.backends.triton import launch, merge, positives
from mxm_kernels.backends.triton.exponentials import LOG2E, LOWEST, add_sums, raised
from mxm_kernels.backends.triton.partials import load_sums, store_partial
from mxm_kernels.backends.triton.positives import store_positives
from mxm_kernels.backends.triton.settings import Launch
from mxm_kernels.backends.triton.tile import padded, products, teacher_arguments, valid_scale


@triton.jit
def _resume(state, length, index, known, reference, FIELDS: tl.constexpr):
    """Load a block's sums (0 where not ``known``) and the greater of two references for them."""
    before = tl.load(state + index, mask=known, other=LOWEST)
    reference = tl.maximum(reference, tl.max(before, 0))
    factor = tl.exp2(before - reference)
    total, weighted, self_weighted = load_sums(state, length, index, known, FIELDS)
    return reference, (total * factor, weighted * factor, self_weighted * factor)


@triton.jit
def _raise_line(line, index, inside, known, top):
    """Raise a line of maxima to ``top``; where not ``known`` it begins with ``top``."""
    before = tl.load(line + index, mask=known, other=float("-inf"))
    tl.store(line + index, tl.maximum(before, top), mask=inside)


@triton.jit
def _add_line(
    state, length, index, inside, known, start, again, reference, share, S, s, T, t,
    FIELDS: tl.constexpr,
):  # fmt: skip
    """Add a tile's shares to a block of a line of scratch, or start it where not ``again``."""
    before = tl.load(state + start, mask=again, other=LOWEST)
    # Every thread has loaded the block's reference before one of them replaces it below. Loads of
    # each thread's own reference need no barrier, and spilled 8 to 32 bytes under Triton 3.9.
    tl.debug_barrier()
    factor = tl.exp2(before - reference)
    sums = load_sums(state, length, index, known, FIELDS)
    sums = add_sums(sums, factor, share, S, s, T, t, 0, FIELDS)
    store_partial(state, length, index, inside, reference, sums, FIELDS)


# A ragged batch changes these numbers at every step; specialising on them would recompile.
@triton.jit(do_not_specialize=["M", "N", "first", "width", "pairs"])
def statistics_kernel(
    x,  # (M, D)
    y,  # (N, D)
    teacher_x,  # (M, TEACHER_D)
    teacher_y,  # (N, TEACHER_D)
    scale,  # ()
    teacher_scale,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    owners,  # (2 pairs,) int64
    pair_texts,  # (pairs,) int64
    slot_places,  # (pairs,) int64
    row_state,  # (Q, FIELDS, M) out
    col_state,  # (P, FIELDS, width) out
    positives,  # (2 pairs,) out
    M,
    N,
    D,
    TEACHER_D,
    first,  # first column of this launch
    width,  # number of columns of this launch
    pairs,  # 0: another launch has them
    T_FIELDS: tl.constexpr,  # 0 without a teacher
    DIAGNOSTICS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    FLOAT8: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PAIR_D: tl.constexpr,
):
    """Running statistics of rows 0:M and columns first:first + width, and the positives."""
    FIELDS: tl.constexpr = 2 + T_FIELDS + DIAGNOSTICS
    p, q = tl.program_id(0), tl.program_id(1)
    row_line = row_state + q.to(tl.int64) * FIELDS * M
    col_line = col_state + p.to(tl.int64) * FIELDS * width
    s = valid_scale(scale)
    t = valid_scale(teacher_scale)
    # One reference for all that this program sums, raised as it meets greater entries.
    S_reference = tl.full((), LOWEST, tl.float32)
    T_reference = tl.full((), LOWEST, tl.float32)
    for row_block in range(p, tl.cdiv(M, BLOCK_M), tl.num_programs(0)):
        rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
        row_inside = rows < M
        # Added to a row's reference: rows beyond the last are copies of it, without a share.
        beyond = tl.where(row_inside, 0.0, float("inf"))
        row = tl.minimum(rows, M - 1)
        # Where registers are short, without a teacher, the groups are loaded for every tile.
        if T_FIELDS:
            row_group = tl.load(image_groups + row)
        resumed = rows < tl.where(first > 0, M, 0)
        S_reference, S_row = _resume(row_line, M, rows, resumed, S_reference, 2)
        T_row = S_row
        if T_FIELDS:
            T_line = row_line + 2 * M
            T_reference, T_row = _resume(T_line, M, rows, resumed, T_reference, T_FIELDS)
        if DIAGNOSTICS:
            row_tops = row_line + (FIELDS - 1) * M
            top = tl.load(row_tops + rows, mask=resumed, other=float("-inf"))
        for col_block in range(q, tl.cdiv(width, BLOCK_N), tl.num_programs(1)):
            places = col_block * BLOCK_N + tl.arange(0, BLOCK_N)
            col_inside = places < width
            col = tl.minimum(first + places, N - 1)
            partial = (col_block + 1) * BLOCK_N > width
            # The column line was last written by this program, for its previous row block.
            known = places < tl.where(row_block != p, width, 0)

            S = products(x, y, row, col, D, BLOCK_D, PRECISION, WIDEN, FLOAT8)  # without s
            if not T_FIELDS:
                row_group = tl.load(image_groups + row)
            same = row_group[:, None] == tl.load(text_groups + col)[None, :]
            before = S_reference
            S_reference = raised(before, S, s * LOG2E)
            share = tl.exp2(S * (s * LOG2E) - (S_reference + beyond)[:, None])
            share = tl.where(same, 0.0, share)
            if partial:
                share = tl.where(col_inside[None, :], share, 0.0)
            factor = tl.exp2(before - S_reference)
            S_row = add_sums(S_row, factor, share, S, s, S, s, 1, 2)
            _add_line(
                col_line, width, places, col_inside, known, col_block * BLOCK_N, row_block != p,
                S_reference, share, S, s, S, s, 2,
            )  # fmt: skip
            if DIAGNOSTICS:
                inside = row_inside[:, None] & col_inside[None, :]
                negatives = tl.where(same | ~inside, float("-inf"), S * s)
                top = tl.maximum(top, tl.max(negatives, 1))
                col_top = tl.max(negatives, 0)
                col_tops = col_line + (FIELDS - 1) * width
                _raise_line(col_tops, places, col_inside, known, col_top)
            if T_FIELDS:
                T = products(
                    teacher_x, teacher_y, row, col, TEACHER_D, BLOCK_D, PRECISION, WIDEN, FLOAT8
                )
                before = T_reference
                T_reference = raised(before, T, t * LOG2E)
                share = tl.exp2(T * (t * LOG2E) - (T_reference + beyond)[:, None])
                if partial:
                    share = tl.where(col_inside[None, :], share, 0.0)
                factor = tl.exp2(before - T_reference)
                T_row = add_sums(T_row, factor, share, S, s, T, t, 1, T_FIELDS)
                T_cols = col_line + 2 * width
                _add_line(
                    T_cols, width, places, col_inside, known, col_block * BLOCK_N, row_block != p,
                    T_reference, share, S, s, T, t, T_FIELDS,
                )  # fmt: skip
        store_partial(row_line, M, rows, row_inside, S_reference, S_row, 2)
        if T_FIELDS:
            store_partial(T_line, M, rows, row_inside, T_reference, T_row, T_FIELDS)
        if DIAGNOSTICS:
            tl.store(row_tops + rows, top, mask=row_inside)
        # Column lines written above are read by other threads in the next row block.
        tl.debug_barrier()
    program, programs = p * tl.num_programs(1) + q, tl.num_programs(0) * tl.num_programs(1)
    store_positives(
        x, y, scale, owners, pair_texts, slot_places, positives, pairs, D, program, programs,
        BLOCK_P, PAIR_D,
    )  # fmt: skip


def grid(problem: Problem, setting: Launch, width: int) -> tuple[int, int]:
    """P x Q: as many row programs as the cache has room for, then columns until the GPU is full."""
    p, programs = problem, launch.processors(problem.x.device) * setting.programs
    features = [f for f in (p.x, p.teacher_x) if f is not None]
    width_bytes = sum(f.shape[1] * f.element_size() for f in features)
    cached = max(1, launch.CACHED_BYTES // (setting.rows * width_bytes))
    most = max(1, programs // triton.cdiv(programs, cached))  # all of them busy, in equal columns
    row_programs = min(triton.cdiv(p.x.shape[0], setting.rows), most)
    col_programs = min(triton.cdiv(width, setting.cols), max(1, programs // row_programs))
    return row_programs, col_programs


def widest(problem: Problem, setting: Launch, fields: int) -> int:
    """Columns of one launch such that their scratch stays inside ``launch.SCRATCH_BYTES``."""
    row_programs, _ = grid(problem, setting, problem.y.shape[0])
    return max(setting.cols, launch.SCRATCH_BYTES // (4 * fields * row_programs))


def forward(problem: Problem, memory: Memory, diagnostics: bool = False) -> Statistics:
    """Allocate, launch, merge: no wait for the device.

    Where diagnostics need another launch (``settings.SETTINGS``), the sums come in its order.
    """
    p, out = padded(problem), problem.allocate(diagnostics)
    teacher_x, teacher_y, teacher_scale = teacher_arguments(p)
    features = p.x, p.y, teacher_x, teacher_y, p.scale, teacher_scale, p.image_groups, p.text_groups
    setting = launch.pick("statistics", problem, diagnostics)
    arithmetic = launch.product_options(p.x.dtype, p.x.device)
    t_fields = (4 if diagnostics else 3) if p.has_teacher else 0
    rows, cols, fields = p.x.shape[0], p.y.shape[0], 2 + t_fields + diagnostics
    sizes = rows, cols, p.x.shape[1], teacher_x.shape[1]
    spans = list(split(cols, widest(p, setting, fields)))
    P, Q = grid(p, setting, spans[0][1])
    row_state = p.x.new_empty((Q, fields, rows), dtype=torch.float32)
    merged = out.neg_lse, out.teacher_mean, out.teacher_lse, out.hardest, out.entropy
    for first, last in spans:
        width, is_last = last - first, last == cols
        col_state = p.x.new_empty((P, fields, width), dtype=torch.float32)
        statistics_kernel[(P, Q)](
            *features, p.owners, p.pair_texts, p.slot_places, row_state, col_state, out.positives,
            *sizes, first, width, p.pairs if is_last else 0,
            T_FIELDS=t_fields, DIAGNOSTICS=diagnostics, **setting.tile(), **arithmetic,
            **positives.BLOCK, **setting.options(),
        )  # fmt: skip
        complete = rows if is_last else 0  # the rows are complete after the last columns
        blocks = sum(triton.cdiv(length, merge.BLOCK["BLOCK"]) for length in (complete, width))
        merge.merge_kernel[(blocks,)](
            *features, row_state, col_state, *merged, *sizes, Q, complete, P, first, width,
            T_FIELDS=t_fields, DIAGNOSTICS=diagnostics, **merge.BLOCK, **arithmetic,
            **merge.options(problem.is_float8),
        )  # fmt: skip
    return out
