"""Forward: one pass over the tiles of S and T gives the statistics of both directions.

The grid is P x Q programs. Program (p, q) takes row blocks p, p + P, ... and of each the
column blocks q, q + Q, ...; row statistics stay in registers, column statistics go to line p
of a scratch that only this program row touches, so no addition is atomic and two runs
give the same bits. A second kernel merges the Q lines of the rows and the P lines of the
columns in a fixed order.

A statistic is kept as (reference, sum of exp(value - reference)) for S over negatives, the
reference in powers of 2 and one for a whole block; for T
there are also the sum of exp(T - reference) S and, for diagnostics, of exp(T - reference) T:
2 numbers, or 5 or 6 with a teacher. The functions below take how many there are as FIELDS, 2 to
4. Diagnostics keep one number more, the maximum of S.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.problem import Problem, Statistics
from mxm_kernels.backends.tiles import split
from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.exponentials import LEAST_SUM, LN2, LOG2E, LOWEST, add_sums, raised
from mxm_kernels.backends.triton.positives import positive_logits
from mxm_kernels.backends.triton.rescue import rescue
from mxm_kernels.backends.triton.tile import padded, products, teacher_arguments


@triton.jit
def _join(a, b):
    """Merge two partial statistics, against the greater reference."""
    top = tl.maximum(a[0], b[0])
    p, q = tl.exp2(a[0] - top), tl.exp2(b[0] - top)
    return top, a[1] * p + b[1] * q, a[2] * p + b[2] * q, a[3] * p + b[3] * q


@triton.jit
def _load_sums(state, length, index, known, FIELDS: tl.constexpr):
    """The sums of each index; 0 where not ``known``."""
    total = tl.load(state + length + index, mask=known, other=0.0)
    weighted, own = total, total
    if FIELDS >= 3:
        weighted = tl.load(state + 2 * length + index, mask=known, other=0.0)
    if FIELDS == 4:
        own = tl.load(state + 3 * length + index, mask=known, other=0.0)
    return total, weighted, own


@triton.jit
def _load_partial(state, length, index, known, FIELDS: tl.constexpr):
    """The partial statistics of each index; the neutral values where not ``known``."""
    reference = tl.load(state + index, mask=known, other=LOWEST)
    total, weighted, own = _load_sums(state, length, index, known, FIELDS)
    return reference, total, weighted, own


@triton.jit
def _store_partial(state, length, index, inside, reference, sums, FIELDS: tl.constexpr):
    """Store the sums, and beside each of them the reference that they share."""
    tl.store(state + index, tl.zeros_like(sums[0]) + reference, mask=inside)
    tl.store(state + length + index, sums[0], mask=inside)
    if FIELDS >= 3:
        tl.store(state + 2 * length + index, sums[1], mask=inside)
    if FIELDS == 4:
        tl.store(state + 3 * length + index, sums[2], mask=inside)


@triton.jit
def _resume(state, length, index, known, start, again, reference, FIELDS: tl.constexpr):
    """The greater reference, and against it the sums of a block from ``start`` on, if ``again``."""
    before = tl.load(state + start, mask=again, other=LOWEST)
    reference = tl.maximum(reference, before)
    factor = tl.exp2(before - reference)
    total, weighted, own = _load_sums(state, length, index, known, FIELDS)
    return reference, (total * factor, weighted * factor, own * factor)


@triton.jit
def _raise_line(line, index, inside, known, top):
    """Raise a line of maxima, starting it where nothing is ``known``."""
    before = tl.load(line + index, mask=known, other=float("-inf"))
    tl.store(line + index, tl.maximum(before, top), mask=inside)


@triton.jit
def _add_line(
    state, length, index, inside, known, start, again, reference, share, S, s, T, t,
    FIELDS: tl.constexpr,
):  # fmt: skip
    """Add a tile's shares to a block of a line of scratch, starting it where it is not ``again``."""
    before = tl.load(state + start, mask=again, other=LOWEST)
    sums = _load_sums(state, length, index, known, FIELDS)
    factor = tl.exp2(before - reference)
    sums = add_sums(sums, factor, share, S, s, T, t, 0, FIELDS)
    _store_partial(state, length, index, inside, reference, sums, FIELDS)


# A ragged batch changes these numbers at every step; specialising on them would recompile.
@triton.jit(do_not_specialize=["M", "N", "first", "width"])
def statistics_kernel(
    x,  # (M, D)
    y,  # (N, D)
    teacher_x,  # (M, TEACHER_D)
    teacher_y,  # (N, TEACHER_D)
    scale,  # ()
    teacher_scale,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    row_state,  # (Q, FIELDS, M) out
    col_state,  # (P, FIELDS, width) out
    M,
    N,
    D,
    TEACHER_D,
    first,  # first column of this launch
    width,  # number of columns of this launch
    T_FIELDS: tl.constexpr,  # 0 without a teacher
    DIAGNOSTICS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Running statistics of rows 0:M and columns first:first + width."""
    FIELDS: tl.constexpr = 2 + T_FIELDS + DIAGNOSTICS
    p, q = tl.program_id(0), tl.program_id(1)
    row_line = row_state + q.to(tl.int64) * FIELDS * M
    col_line = col_state + p.to(tl.int64) * FIELDS * width
    s = tl.load(scale)
    t = tl.load(teacher_scale)
    # One reference for all that this program sums, raised as it meets greater entries.
    S_reference = tl.full((), LOWEST, tl.float32)
    T_reference = tl.full((), LOWEST, tl.float32)
    for row_block in range(p, tl.cdiv(M, BLOCK_M), tl.num_programs(0)):
        rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
        row_inside = rows < M
        # Added to a row's reference: rows beyond the last are copies of it, without a share.
        beyond = tl.where(row_inside, 0.0, float("inf"))
        row = tl.minimum(rows, M - 1)
        row_group = tl.load(image_groups + row)
        resumed = rows < tl.where(first > 0, M, 0)
        start = row_block * BLOCK_M
        S_reference, S_row = _resume(
            row_line, M, rows, resumed, start, first > 0, S_reference, 2
        )
        T_row = S_row
        if T_FIELDS:
            T_reference, T_row = _resume(
                row_line + 2 * M, M, rows, resumed, start, first > 0, T_reference, T_FIELDS
            )
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

            S = products(x, y, row, col, D, BLOCK_D, PRECISION, WIDEN)  # without s
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
                T = products(teacher_x, teacher_y, row, col, TEACHER_D, BLOCK_D, PRECISION, WIDEN)
                before = T_reference
                T_reference = raised(before, T, t * LOG2E)
                share = tl.exp2(T * (t * LOG2E) - (T_reference + beyond)[:, None])
                if partial:
                    share = tl.where(col_inside[None, :], share, 0.0)
                factor = tl.exp2(before - T_reference)
                T_row = add_sums(T_row, factor, share, S, s, T, t, 1, T_FIELDS)
                _add_line(
                    col_line + 2 * width, width, places, col_inside, known, col_block * BLOCK_N,
                    row_block != p, T_reference, share, S, s, T, t, T_FIELDS,
                )  # fmt: skip
        _store_partial(row_line, M, rows, row_inside, S_reference, S_row, 2)
        if T_FIELDS:
            T_line = row_line + 2 * M
            _store_partial(T_line, M, rows, row_inside, T_reference, T_row, T_FIELDS)
        if DIAGNOSTICS:
            tl.store(row_tops + rows, top, mask=row_inside)
        # Column lines written above are read by other threads in the next row block.
        tl.debug_barrier()


@triton.jit
def _held(total):
    """Whether a sum is within float32's reach, for its reference."""
    return (total >= LEAST_SUM) & (total < float("inf"))


@triton.jit
def _join_lines(state, lines, length, index, inside, LINE: tl.constexpr, FIELDS: tl.constexpr):
    """Merge the partial statistics of all lines, in order; LINE fields from one to the next."""
    partial = _load_partial(state, length, index, inside, FIELDS)
    for line in range(1, lines):
        there = state + tl.cast(line, tl.int64) * LINE * length
        partial = _join(partial, _load_partial(there, length, index, inside, FIELDS))
    return partial


@triton.jit(do_not_specialize=["lines", "length"])
def merge_kernel(
    state,  # (lines, FIELDS, length)
    n,  # (length,) out
    u,  # (length,) out
    t,  # (length,) out
    m,  # (length,) out
    h,  # (length,) out
    lines,
    length,
    T_FIELDS: tl.constexpr,
    DIAGNOSTICS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Merge the lines of a scratch into n, with a teacher u and t, for diagnostics m and h."""
    FIELDS: tl.constexpr = 2 + T_FIELDS + DIAGNOSTICS
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < length
    S = _join_lines(state, lines, length, index, inside, FIELDS, 2)
    # What lies too far below the greatest entry is left to ``rescue``, which looks for NaN.
    n_value = (S[0] + tl.log2(S[1])) * LN2
    tl.store(n + index, tl.where(_held(S[1]), n_value, float("nan")), mask=inside)
    if DIAGNOSTICS:
        tops = state + (FIELDS - 1) * length + index
        top = tl.load(tops, mask=inside, other=float("-inf"))
        for line in range(1, lines):
            there = tops + tl.cast(line, tl.int64) * FIELDS * length
            top = tl.maximum(top, tl.load(there, mask=inside, other=float("-inf")))
        tl.store(m + index, top, mask=inside)
    if T_FIELDS:
        T = _join_lines(state + 2 * length, lines, length, index, inside, FIELDS, T_FIELDS)
        t_value = tl.where(_held(T[1]), (T[0] + tl.log2(T[1])) * LN2, float("nan"))
        tl.store(u + index, T[2] / T[1], mask=inside)
        tl.store(t + index, t_value, mask=inside)
        if DIAGNOSTICS:
            # Rounding may pass 0.
            tl.store(h + index, tl.maximum(t_value - T[3] / T[1], 0.0), mask=inside)


MERGE_BLOCK = 128


def grid(problem: Problem, setting: launch.Launch, width: int) -> tuple[int, int]:
    """P x Q: as many row programs as the cache has room for, then columns until the GPU is full."""
    p, programs = problem, launch.processors(problem.x.device) * setting.programs
    depth = p.x.shape[1] + (0 if p.teacher_x is None else p.teacher_x.shape[1])
    cached = max(1, launch.CACHED_BYTES // (setting.rows * depth * p.x.element_size()))
    most = max(1, programs // triton.cdiv(programs, cached))  # all of them busy, in equal columns
    row_programs = min(triton.cdiv(p.x.shape[0], setting.rows), most)
    col_programs = min(triton.cdiv(width, setting.cols), max(1, programs // row_programs))
    return row_programs, col_programs


def widest(problem: Problem, setting: launch.Launch, fields: int) -> int:
    """Columns of one launch such that their scratch stays inside the workspace."""
    row_programs, _ = grid(problem, setting, problem.y.shape[0])
    return max(setting.cols, launch.WORKSPACE_BYTES // (4 * fields * row_programs))


def merge(state: Tensor, out: Sequence[Tensor], t_fields: int, diagnostics: bool) -> None:
    """Launch ``merge_kernel`` on a (lines, fields, length) scratch, for n, u, t, m and h."""
    lines, _, length = state.shape
    merge_kernel[(triton.cdiv(length, MERGE_BLOCK),)](
        state, *out, lines, length, T_FIELDS=t_fields, DIAGNOSTICS=diagnostics, BLOCK=MERGE_BLOCK
    )


def forward(problem: Problem, diagnostics: bool) -> Statistics:
    """Allocate, launch, merge: no wait for the device."""
    p, out = padded(problem), problem.room(diagnostics)
    teacher_x, teacher_y, teacher_scale = teacher_arguments(p)
    setting = launch.pick("statistics", p.x.device, p.x.dtype, p.has_teacher, diagnostics)
    t_fields = (4 if diagnostics else 3) if p.has_teacher else 0
    rows, cols, fields = p.x.shape[0], p.y.shape[0], 2 + t_fields + diagnostics
    spans = list(split(cols, widest(p, setting, fields)))
    P, Q = grid(p, setting, spans[0][1])
    row_state = p.x.new_empty((Q, fields, rows), dtype=torch.float32)
    for first, last in spans:
        width = last - first
        col_state = p.x.new_empty((P, fields, width), dtype=torch.float32)
        statistics_kernel[(P, Q)](
            p.x, p.y, teacher_x, teacher_y, p.scale, teacher_scale,
            p.image_groups, p.text_groups, row_state, col_state,
            rows, cols, p.x.shape[1], teacher_x.shape[1], first, width,
            T_FIELDS=t_fields, DIAGNOSTICS=diagnostics, **setting.tile(),
            **launch.product_options(p.x.dtype, p.x.device), **setting.options(),
        )  # fmt: skip
        columns = out.n_cols, out.u_cols, out.t_cols, out.m_cols, out.h_cols
        merge(col_state, [v[first:last] for v in columns], t_fields, diagnostics)
    merge(
        row_state,
        (out.n_rows, out.u_rows, out.t_rows, out.m_rows, out.h_rows),
        t_fields,
        diagnostics,
    )
    rescue(p, out, t_fields)
    positive_logits(p, out.positives)
    return out
