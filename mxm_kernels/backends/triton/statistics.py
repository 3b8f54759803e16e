"""Forward: one pass over the tiles of S and T gives the statistics of both directions.

The grid is P x Q programs. Program (p, q) takes row blocks p, p + P, ... and of each the
column blocks q, q + Q, ...; row statistics stay in registers, column statistics go to line p
of a scratch that only this program row touches, so no addition is atomic and two runs
give the same bits. A second kernel merges the Q lines of the rows and the P lines of the
columns in a fixed order.

A statistic is kept as (maximum, sum of exp(value - maximum)) for S over negatives, and for
T also the sum of exp(T - maximum) S: 2 numbers, or 5 with a teacher.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.problem import Problem, Statistics
from mxm_kernels.backends.tiles import split
from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.positives import positive_logits
from mxm_kernels.backends.triton.tile import logits, padded, teacher_arguments


@triton.jit
def _summarise(values, weights, axis: tl.constexpr, WEIGHTED: tl.constexpr):
    """(maximum, sum of exp, weighted sum of exp) of a tile over ``axis``."""
    top = tl.max(values, axis)
    # An empty row has maximum -inf; exp(-inf - -inf) would be NaN.
    safe = tl.where(top == float("-inf"), 0.0, top)
    share = tl.exp(values - tl.expand_dims(safe, axis))
    total = tl.sum(share, axis)
    weighted = total
    if WEIGHTED:
        weighted = tl.sum(share * weights, axis)
    return top, total, weighted


@triton.jit
def _join(a_top, a_sum, a_weighted, b_top, b_sum, b_weighted):
    """Merge two partial statistics."""
    top = tl.maximum(a_top, b_top)
    safe = tl.where(top == float("-inf"), 0.0, top)
    a, b = tl.exp(a_top - safe), tl.exp(b_top - safe)
    return top, a_sum * a + b_sum * b, a_weighted * a + b_weighted * b


@triton.jit
def _load_partial(state, length, index, known, WEIGHTED: tl.constexpr):
    """(maximum, sum, weighted sum) of each index; the neutral values where not ``known``."""
    top = tl.load(state + index, mask=known, other=float("-inf"))
    total = tl.load(state + length + index, mask=known, other=0.0)
    weighted = total
    if WEIGHTED:
        weighted = tl.load(state + 2 * length + index, mask=known, other=0.0)
    return top, total, weighted


@triton.jit
def _store_partial(state, length, index, inside, top, total, weighted, WEIGHTED: tl.constexpr):
    tl.store(state + index, top, mask=inside)
    tl.store(state + length + index, total, mask=inside)
    if WEIGHTED:
        tl.store(state + 2 * length + index, weighted, mask=inside)


@triton.jit
def _join_line(
    state, length, index, inside, known, values, weights, axis: tl.constexpr, WEIGHTED: tl.constexpr
):
    """Merge a tile into a line of scratch, starting it where nothing is ``known``."""
    a_top, a_sum, a_weighted = _summarise(values, weights, axis, WEIGHTED)
    b_top, b_sum, b_weighted = _load_partial(state, length, index, known, WEIGHTED)
    top, total, weighted = _join(b_top, b_sum, b_weighted, a_top, a_sum, a_weighted)
    _store_partial(state, length, index, inside, top, total, weighted, WEIGHTED)


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
    row_state,  # (Q, 2 or 5, M) out
    col_state,  # (P, 2 or 5, width) out
    M,
    N,
    D,
    TEACHER_D,
    first,  # first column of this launch
    width,  # number of columns of this launch
    TEACHER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Running statistics of rows 0:M and columns first:first + width."""
    FIELDS: tl.constexpr = 5 if TEACHER else 2
    p, q = tl.program_id(0), tl.program_id(1)
    row_line = row_state + q.to(tl.int64) * FIELDS * M
    col_line = col_state + p.to(tl.int64) * FIELDS * width
    s = tl.load(scale)
    t = tl.load(teacher_scale)
    for row_block in range(p, tl.cdiv(M, BLOCK_M), tl.num_programs(0)):
        rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
        row_inside = rows < M
        row = tl.minimum(rows, M - 1)
        row_group = tl.load(image_groups + row)
        resumed = rows < tl.where(first > 0, M, 0)
        n_top, n_sum, _ = _load_partial(row_line, M, rows, resumed, False)
        t_top, t_sum, t_weighted = n_top, n_sum, n_sum
        if TEACHER:
            t_top, t_sum, t_weighted = _load_partial(row_line + 2 * M, M, rows, resumed, True)
        for col_block in range(q, tl.cdiv(width, BLOCK_N), tl.num_programs(1)):
            places = col_block * BLOCK_N + tl.arange(0, BLOCK_N)
            col_inside = places < width
            col = tl.minimum(first + places, N - 1)
            inside = row_inside[:, None] & col_inside[None, :]
            # The column line was last written by this program, for its previous row block.
            known = places < tl.where(row_block != p, width, 0)

            S = logits(x, y, row, col, D, s, BLOCK_D, PRECISION, WIDEN)
            same = row_group[:, None] == tl.load(text_groups + col)[None, :]
            negatives = tl.where(same | ~inside, float("-inf"), S)
            a_top, a_sum, _ = _summarise(negatives, S, 1, False)
            n_top, n_sum, _ = _join(n_top, n_sum, n_sum, a_top, a_sum, a_sum)
            _join_line(col_line, width, places, col_inside, known, negatives, S, 0, False)
            if TEACHER:
                T = logits(teacher_x, teacher_y, row, col, TEACHER_D, t, BLOCK_D, PRECISION, WIDEN)
                T = tl.where(inside, T, float("-inf"))
                a_top, a_sum, a_weighted = _summarise(T, S, 1, True)
                t_top, t_sum, t_weighted = _join(t_top, t_sum, t_weighted, a_top, a_sum, a_weighted)
                t_line = col_line + 2 * width
                _join_line(t_line, width, places, col_inside, known, T, S, 0, True)
        _store_partial(row_line, M, rows, row_inside, n_top, n_sum, n_sum, False)
        if TEACHER:
            _store_partial(row_line + 2 * M, M, rows, row_inside, t_top, t_sum, t_weighted, True)
        # Column lines written above are read by other threads in the next row block.
        tl.debug_barrier()


@triton.jit(do_not_specialize=["lines", "length"])
def merge_kernel(
    state,  # (lines, 2 or 5, length)
    n,  # (length,) out
    u,  # (length,) out
    t,  # (length,) out
    lines,
    length,
    TEACHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Merge the lines of a scratch, in order, into n and, with a teacher, u and t."""
    FIELDS: tl.constexpr = 5 if TEACHER else 2
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < length
    n_top, n_sum, _ = _load_partial(state, length, index, inside, False)
    for line in range(1, lines):
        there = state + tl.cast(line, tl.int64) * FIELDS * length
        a_top, a_sum, _ = _load_partial(there, length, index, inside, False)
        n_top, n_sum, _ = _join(n_top, n_sum, n_sum, a_top, a_sum, a_sum)
    tl.store(n + index, n_top + tl.log(n_sum), mask=inside)
    if TEACHER:
        state += 2 * length
        t_top, t_sum, t_weighted = _load_partial(state, length, index, inside, True)
        for line in range(1, lines):
            there = state + tl.cast(line, tl.int64) * FIELDS * length
            b_top, b_sum, b_weighted = _load_partial(there, length, index, inside, True)
            t_top, t_sum, t_weighted = _join(t_top, t_sum, t_weighted, b_top, b_sum, b_weighted)
        tl.store(u + index, t_weighted / t_sum, mask=inside)
        tl.store(t + index, t_top + tl.log(t_sum), mask=inside)


MERGE_BLOCK = 128


def grid(problem: Problem, setting: launch.Launch, width: int) -> tuple[int, int]:
    """P x Q: as many row programs as there are row blocks, then columns until the GPU is full."""
    programs = launch.processors(problem.x.device)
    row_programs = min(triton.cdiv(problem.x.shape[0], setting.rows), programs)
    col_programs = min(triton.cdiv(width, setting.cols), max(1, programs // row_programs))
    return row_programs, col_programs


def widest(problem: Problem, setting: launch.Launch, fields: int) -> int:
    """Columns of one launch such that their scratch stays inside the workspace."""
    row_programs, _ = grid(problem, setting, problem.y.shape[0])
    return max(setting.cols, launch.WORKSPACE_BYTES // (4 * fields * row_programs))


def merge(state: Tensor, n: Tensor, u: Tensor, t: Tensor, teacher: bool) -> None:
    """Launch ``merge_kernel`` on a (lines, fields, length) scratch."""
    lines, _, length = state.shape
    blocks = triton.cdiv(length, MERGE_BLOCK)
    merge_kernel[(blocks,)](state, n, u, t, lines, length, TEACHER=teacher, BLOCK=MERGE_BLOCK)


def forward(problem: Problem) -> Statistics:
    """Allocate, launch, merge: no wait for the device."""
    p, teacher = padded(problem), problem.has_teacher
    teacher_x, teacher_y, teacher_scale = teacher_arguments(p)
    setting = launch.pick("statistics", p.x.device, p.x.dtype, teacher)
    rows, cols, fields = p.x.shape[0], p.y.shape[0], 5 if teacher else 2

    def empty(*shape: int) -> Tensor:
        return p.x.new_empty(shape, dtype=torch.float32)

    extra = (rows, cols) if teacher else (0, 0)
    out = Statistics(
        empty(rows), empty(cols), empty(p.pair_images.shape[0]), *(empty(e) for e in extra * 2)
    )
    spans = list(split(cols, widest(p, setting, fields)))
    P, Q = grid(p, setting, spans[0][1])
    row_state = empty(Q, fields, rows)
    for first, last in spans:
        width = last - first
        col_state = empty(P, fields, width)
        statistics_kernel[(P, Q)](
            p.x, p.y, teacher_x, teacher_y, p.scale, teacher_scale,
            p.image_groups, p.text_groups, row_state, col_state,
            rows, cols, p.x.shape[1], teacher_x.shape[1], first, width,
            TEACHER=teacher, **setting.tile(),
            **launch.product_options(p.x.dtype, p.x.device), **setting.options(),
        )  # fmt: skip
        u_cols, t_cols = (v[first:last] if teacher else v for v in (out.u_cols, out.t_cols))
        merge(col_state, out.n_cols[first:last], u_cols, t_cols, teacher)
    merge(row_state, out.n_rows, out.u_rows, out.t_rows, teacher)
    positive_logits(p, out.positives)
    return out
