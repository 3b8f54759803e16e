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
from mxm_kernels.backends.triton.tile import has_any, logits


@triton.jit
def _accumulate(top, total, weighted, values, weights, axis: tl.constexpr, WEIGHTED: tl.constexpr):
    """Merge a tile of values into running (maximum, sum, weighted sum) over ``axis``."""
    raised = tl.maximum(top, tl.max(values, axis))
    # An empty row has maximum -inf; exp(-inf - -inf) would be NaN.
    safe = tl.where(raised == float("-inf"), 0.0, raised)
    decay = tl.exp(top - safe)
    share = tl.exp(values - tl.expand_dims(safe, axis))
    total = total * decay + tl.sum(share, axis)
    if WEIGHTED:
        weighted = weighted * decay + tl.sum(share * weights, axis)
    return raised, total, weighted


@triton.jit
def _load_state(state, length, index, known, TEACHER: tl.constexpr):
    """Five running numbers of each index; their neutral values where not ``known``."""
    n_top = tl.load(state + index, mask=known, other=float("-inf"))
    n_sum = tl.load(state + length + index, mask=known, other=0.0)
    t_top, t_sum, t_weighted = n_top, n_sum, n_sum
    if TEACHER:
        t_top = tl.load(state + 2 * length + index, mask=known, other=float("-inf"))
        t_sum = tl.load(state + 3 * length + index, mask=known, other=0.0)
        t_weighted = tl.load(state + 4 * length + index, mask=known, other=0.0)
    return n_top, n_sum, t_top, t_sum, t_weighted


@triton.jit
def _store_state(
    state, length, index, inside, n_top, n_sum, t_top, t_sum, t_weighted, TEACHER: tl.constexpr
):
    tl.store(state + index, n_top, mask=inside)
    tl.store(state + length + index, n_sum, mask=inside)
    if TEACHER:
        tl.store(state + 2 * length + index, t_top, mask=inside)
        tl.store(state + 3 * length + index, t_sum, mask=inside)
        tl.store(state + 4 * length + index, t_weighted, mask=inside)


@triton.jit
def statistics_kernel(
    x,  # (M, D)
    y,  # (N, D)
    teacher_x,  # (M, TEACHER_D)
    teacher_y,  # (N, TEACHER_D)
    scale,  # ()
    teacher_scale,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    image_offsets,  # (M + 1,) int64
    text_ranks,  # (N,) int32
    positives,  # (pairs,) out
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
    """Running statistics of rows 0:M and columns first:first + width, and S at the positives."""
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
        row_offset = tl.load(image_offsets + row)
        known = rows < tl.where(first > 0, M, 0)
        rn_top, rn_sum, rt_top, rt_sum, rt_weighted = _load_state(row_line, M, rows, known, TEACHER)
        for col_block in range(q, tl.cdiv(width, BLOCK_N), tl.num_programs(1)):
            places = col_block * BLOCK_N + tl.arange(0, BLOCK_N)
            col_inside = places < width
            col = tl.minimum(first + places, N - 1)
            inside = row_inside[:, None] & col_inside[None, :]
            S = logits(x, y, row, col, D, s, BLOCK_D, PRECISION, WIDEN)
            T = S
            if TEACHER:
                T = logits(teacher_x, teacher_y, row, col, TEACHER_D, t, BLOCK_D, PRECISION, WIDEN)
                T = tl.where(inside, T, float("-inf"))
            same = inside & (row_group[:, None] == tl.load(text_groups + col)[None, :])
            if has_any(same):
                slot = row_offset[:, None] + tl.load(text_ranks + col)[None, :]
                tl.store(positives + slot, S, mask=same)
            negatives = tl.where(same | ~inside, float("-inf"), S)

            # The column line was last written by this program, for its previous row block.
            known = places < tl.where(row_block != p, width, 0)
            cn_top, cn_sum, ct_top, ct_sum, ct_weighted = _load_state(
                col_line, width, places, known, TEACHER
            )
            rn_top, rn_sum, _ = _accumulate(rn_top, rn_sum, rn_sum, negatives, S, 1, False)
            cn_top, cn_sum, _ = _accumulate(cn_top, cn_sum, cn_sum, negatives, S, 0, False)
            if TEACHER:
                rt_top, rt_sum, rt_weighted = _accumulate(
                    rt_top, rt_sum, rt_weighted, T, S, 1, True
                )
                ct_top, ct_sum, ct_weighted = _accumulate(
                    ct_top, ct_sum, ct_weighted, T, S, 0, True
                )
            _store_state(
                col_line, width, places, col_inside,
                cn_top, cn_sum, ct_top, ct_sum, ct_weighted, TEACHER,
            )  # fmt: skip
        _store_state(
            row_line, M, rows, row_inside, rn_top, rn_sum, rt_top, rt_sum, rt_weighted, TEACHER
        )
        # Column lines written above are read by other threads in the next row block.
        tl.debug_barrier()


@triton.jit
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
    n_top, n_sum, t_top, t_sum, t_weighted = _load_state(state, length, index, inside, TEACHER)
    for line in range(1, lines):
        there = state + tl.cast(line, tl.int64) * FIELDS * length
        a_top, a_sum, b_top, b_sum, b_weighted = _load_state(there, length, index, inside, TEACHER)
        n_top, n_sum, _ = _join(n_top, n_sum, n_sum, a_top, a_sum, a_sum)
        if TEACHER:
            t_top, t_sum, t_weighted = _join(t_top, t_sum, t_weighted, b_top, b_sum, b_weighted)
    tl.store(n + index, n_top + tl.log(n_sum), mask=inside)
    if TEACHER:
        tl.store(u + index, t_weighted / t_sum, mask=inside)
        tl.store(t + index, t_top + tl.log(t_sum), mask=inside)


@triton.jit
def _join(a_top, a_sum, a_weighted, b_top, b_sum, b_weighted):
    """Merge two partial statistics."""
    top = tl.maximum(a_top, b_top)
    safe = tl.where(top == float("-inf"), 0.0, top)
    a, b = tl.exp(a_top - safe), tl.exp(b_top - safe)
    return top, a_sum * a + b_sum * b, a_weighted * a + b_weighted * b


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
    p = problem._replace(x=problem.x.contiguous(), y=problem.y.contiguous())
    teacher = p.has_teacher
    setting = launch.pick("statistics", p.x.device, p.x.dtype, teacher)
    rows, cols, fields = p.x.shape[0], p.y.shape[0], 5 if teacher else 2

    def empty(*shape: int) -> Tensor:
        return p.x.new_empty(shape, dtype=torch.float32)

    extra = (rows, cols) if teacher else (0, 0)
    out = Statistics(
        empty(rows), empty(cols), empty(p.pair_images.shape[0]), *(empty(e) for e in extra * 2)
    )
    teacher_x = p.teacher_x.contiguous() if p.teacher_x is not None else p.x
    teacher_y = p.teacher_y.contiguous() if p.teacher_y is not None else p.y
    teacher_scale = p.teacher_scale if p.teacher_scale is not None else p.scale
    spans = list(split(cols, widest(p, setting, fields)))
    P, Q = grid(p, setting, spans[0][1])
    row_state = empty(Q, fields, rows)
    for first, last in spans:
        width = last - first
        col_state = empty(P, fields, width)
        statistics_kernel[(P, Q)](
            p.x, p.y, teacher_x, teacher_y, p.scale, teacher_scale,
            p.image_groups, p.text_groups, p.image_offsets, p.text_ranks,
            out.positives, row_state, col_state,
            rows, cols, p.x.shape[1], teacher_x.shape[1], first, width,
            TEACHER=teacher, **setting.tile(),
            **launch.product_options(p.x.dtype, p.x.device), **setting.options(),
        )  # fmt: skip
        u_cols, t_cols = (v[first:last] if teacher else v for v in (out.u_cols, out.t_cols))
        merge(col_state, out.n_cols[first:last], u_cols, t_cols, teacher)
    merge(row_state, out.n_rows, out.u_rows, out.t_rows, teacher)
    return out
