"""Forward: one pass over the tiles of S and T gives the statistics of both directions.

A program has one tile. For each of its rows and columns it finds the maximum and the sums against
it, and stores them as a line of a scratch: that of the rows is (column blocks, FIELDS, M), that of
the columns (row blocks, FIELDS, width). ``merge`` joins the lines in a fixed order, so no addition
is atomic and two runs give the same bits. A batch whose scratch would pass the budget is walked in
spans of columns; the rows' partial statistics are carried from span to span.

A statistic is (maximum, sum of exp(value - maximum), sum of exp(value - maximum) S) of S over
negatives, and of T, where there is for diagnostics also the sum of exp(T - maximum) T: 3 numbers,
or 6 or 7 with a teacher. Where the sums of S over the negatives are asked for they are one number
more, the last of a line. The maxima are in powers of 2. Where S and T are kept, the tile that was
multiplied is stored beside, and the statistics are of the float32 products all the same. Under
rules (TOLD) the lines are those of ``told_sums``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import Memory, Problem, Statistics
from mxm_kernels.backends.tiles import Span
from mxm_kernels.backends.triton import launch, merge
from mxm_kernels.backends.triton.chunks import padded, spans
from mxm_kernels.backends.triton.exponentials import LN2, LOG2E
from mxm_kernels.backends.triton.fixed_point import in_fixed_point
from mxm_kernels.backends.triton.plan import check_budget, kept_stride, spans_of
from mxm_kernels.backends.triton.rows_of_features import units_and_positives
from mxm_kernels.backends.triton.rules import rules_of
from mxm_kernels.backends.triton.settings import Phase
from mxm_kernels.backends.triton.stored import multiply
from mxm_kernels.backends.triton.sums import OUTSIDE, store_sums
from mxm_kernels.backends.triton.tile import (
    operand,
    operands,
    place_of,
    prepared,
    products,
    store_tile,
    teacher_arguments,
    tile_places,
    valid_scale,
)
from mxm_kernels.backends.triton.told_sums import told_sums


@triton.jit
def _block(first, end, BLOCK: tl.constexpr):
    """Rows or columns of a block, whether each is inside, and what is added to its logits."""
    at = first + tl.arange(0, BLOCK)
    inside = at < end
    return at, inside, tl.where(inside, 0.0, OUTSIDE)


@triton.jit
def student_sums(
    S, s, image_groups, text_groups, row_line, col_line, first_row, first_col, M, first, last,
    T_FIELDS: tl.constexpr, NEG_SUM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The partial statistics of a tile of S over its negatives; S is without s."""
    row, row_inside, row_out = _block(first_row, M, BLOCK_M)
    col, col_inside, col_out = _block(first_col, last, BLOCK_N)
    of_row = tl.load(image_groups + row, mask=row_inside, other=0)
    of_col = tl.load(text_groups + col, mask=col_inside, other=0)
    L = S * (s * LOG2E) + row_out[:, None] + col_out[None, :]
    L = tl.where(of_row[:, None] == of_col[None, :], OUTSIDE, L)
    SUM: tl.constexpr = (3 + T_FIELDS) * NEG_SUM
    store_sums(L, L, LN2, row_line, M, row, row_inside, 1, False, SUM)
    store_sums(L, L, LN2, col_line, last - first, col - first, col_inside, 0, False, SUM)


@triton.jit
def teacher_sums(
    T, t, S, s, row_line, col_line, first_row, first_col, M, first, last,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """The partial statistics of a tile of T, with the sums of its shares of S."""
    row, row_inside, row_out = _block(first_row, M, BLOCK_M)
    col, col_inside, col_out = _block(first_col, last, BLOCK_N)
    width = last - first
    L = T * (t * LOG2E) + row_out[:, None] + col_out[None, :]
    store_sums(L, S, s, row_line + 3 * M, M, row, row_inside, 1, OWN, 0)
    store_sums(L, S, s, col_line + 3 * width, width, col - first, col_inside, 0, OWN, 0)


@triton.jit
def _lines(
    row_state, col_state, row_block, col_block, M, width,
    T_FIELDS: tl.constexpr, NEG_SUM: tl.constexpr, TOLD: tl.constexpr,
):  # fmt: skip
    """The lines of both scratches that a tile stores."""
    FIELDS: tl.constexpr = 3 + T_FIELDS + NEG_SUM + 2 * (TOLD and T_FIELDS > 0)
    row_line = row_state + col_block.to(tl.int64) * FIELDS * M
    return row_line, col_state + row_block.to(tl.int64) * FIELDS * width


# A ragged batch changes these numbers at every step; specialising on them would recompile.
@triton.jit(do_not_specialize=["M", "N", "first", "last", "group"])
def statistics_kernel(
    x,  # (M, D), a pointer or a descriptor
    y,  # (N, D)
    teacher_x,  # (M, TEACHER_D)
    teacher_y,  # (N, TEACHER_D)
    scale,  # ()
    teacher_scale,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    rules,  # five vectors (M + N,), not read unless TOLD
    units,  # (1 or 2, M + N), not read unless KEEP
    S_kept,  # (M, stride) int16 out, a pointer or a descriptor, not written unless KEEP
    T_kept,  # (M, stride) int16 out
    row_state,  # (column blocks, FIELDS, M) out
    col_state,  # (row blocks, FIELDS, last - first) out
    M,
    N,
    D,
    TEACHER_D,
    first,  # first column of this launch
    last,  # and the one after its last
    stride,
    group,
    KEEP: tl.constexpr,
    TEACHER: tl.constexpr,
    T_FIELDS: tl.constexpr,  # 0 where T is not summed
    NEG_SUM: tl.constexpr,
    TOLD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Partial statistics of a tile of 16-bit features' S and T, which it multiplies."""
    row_block, col_block = place_of(tl.program_id(0), M, last - first, group, BLOCK_M, BLOCK_N)
    row_line, col_line = _lines(
        row_state, col_state, row_block, col_block, M, last - first, T_FIELDS, NEG_SUM, TOLD
    )
    first_row, first_col = row_block * BLOCK_M, first + col_block * BLOCK_N
    s = valid_scale(scale)
    S = products(x, y, first_row, first_col, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, WIDEN)
    below = first_row + tl.arange(0, BLOCK_M) < M
    if KEEP:
        fixed = in_fixed_point(S, units, first_row, first_col, M, N, BLOCK_M, BLOCK_N)
        store_tile(S_kept, fixed, first_row, first_col, stride, below, BLOCK_M, BLOCK_N)
    if not TOLD:
        student_sums(
            S, s, image_groups, text_groups, row_line, col_line,
            first_row, first_col, M, first, last, T_FIELDS, NEG_SUM, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    T = S
    if TEACHER:
        T = products(
            teacher_x, teacher_y, first_row, first_col, M, N, TEACHER_D,
            BLOCK_M, BLOCK_N, BLOCK_D, WIDEN,
        )  # fmt: skip
        if KEEP:
            fixed = in_fixed_point(T, units + M + N, first_row, first_col, M, N, BLOCK_M, BLOCK_N)
            store_tile(T_kept, fixed, first_row, first_col, stride, below, BLOCK_M, BLOCK_N)
        if not TOLD:
            teacher_sums(
                T, valid_scale(teacher_scale), S, s, row_line, col_line,
                first_row, first_col, M, first, last, BLOCK_M, BLOCK_N, T_FIELDS == 4,
            )  # fmt: skip
    if TOLD:
        told_sums(
            S, T, s, valid_scale(teacher_scale), image_groups, text_groups, rules,
            row_line, col_line, first_row, first_col, M, first, last,
            TEACHER, T_FIELDS, NEG_SUM, BLOCK_M, BLOCK_N,
        )  # fmt: skip


@triton.jit(do_not_specialize=["M", "first", "last", "before", "group"])
def stored_statistics_kernel(
    S,  # (M, stride) float32
    T,  # (M, stride) float32, not read without a teacher
    scale,  # ()
    teacher_scale,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    rules,  # five vectors (M + N,), not read unless TOLD
    row_state,  # (column blocks, FIELDS, M) out
    col_state,  # (row blocks, FIELDS, last - first) out
    M,
    first,  # first column of this launch
    last,  # and the one after its last
    before,  # the column that the rows of S and T begin with
    stride,
    group,
    TEACHER: tl.constexpr,
    T_FIELDS: tl.constexpr,  # 0 where T is not summed
    NEG_SUM: tl.constexpr,
    TOLD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Partial statistics of a tile of S and T that lie in memory."""
    row_block, col_block = place_of(tl.program_id(0), M, last - first, group, BLOCK_M, BLOCK_N)
    row_line, col_line = _lines(
        row_state, col_state, row_block, col_block, M, last - first, T_FIELDS, NEG_SUM, TOLD
    )
    first_row, first_col = row_block * BLOCK_M, first + col_block * BLOCK_N
    corner, inner = tile_places(first_row, first_col - before, stride, BLOCK_M, BLOCK_N)
    below = (first_row + tl.arange(0, BLOCK_M) < M)[:, None]
    within = (first_col + tl.arange(0, BLOCK_N) < last)[None, :] & below
    s = valid_scale(scale)
    S_tile = tl.load(S + corner + inner, mask=within, other=0.0)
    if not TOLD:
        student_sums(
            S_tile, s, image_groups, text_groups, row_line, col_line,
            first_row, first_col, M, first, last, T_FIELDS, NEG_SUM, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    T_tile = S_tile
    if TEACHER:
        T_tile = tl.load(T + corner + inner, mask=within, other=0.0)
        if not TOLD:
            teacher_sums(
                T_tile, valid_scale(teacher_scale), S_tile, s, row_line, col_line,
                first_row, first_col, M, first, last, BLOCK_M, BLOCK_N, T_FIELDS == 4,
            )  # fmt: skip
    if TOLD:
        told_sums(
            S_tile, T_tile, s, valid_scale(teacher_scale), image_groups, text_groups, rules,
            row_line, col_line, first_row, first_col, M, first, last,
            TEACHER, T_FIELDS, NEG_SUM, BLOCK_M, BLOCK_N,
        )  # fmt: skip


class _Forward:
    """One call: what its launches share."""

    def __init__(self, problem: Problem, memory: Memory, diagnostics: bool, neg_sum: bool) -> None:
        self.p = prepared(problem)
        self.stride = kept_stride(problem, memory)
        check_budget(problem, memory)
        self.stored = problem.x.dtype == torch.float32
        made = problem.allocate(diagnostics, neg_sum, neg_mean=True, stride=self.stride)
        self.rules = rules_of(self.p)
        offsets = None if self.rules is None else self.rules[0]
        self.units = units_and_positives(self.p, made, offsets)
        self.made = made
        t_fields = (4 if diagnostics else 3) if problem.has_soft else 0
        self.terms = {
            "TEACHER": problem.has_teacher,
            "T_FIELDS": t_fields,
            "NEG_SUM": neg_sum,
            "TOLD": problem.told,
        }
        self.fields = 3 + t_fields + neg_sum + 2 * (problem.told and t_fields > 0)
        phase: Phase = "stored_statistics" if self.stored else "statistics"
        self.setting = launch.pick_placed(phase, self.p, diagnostics, neg_sum)

    def run(self) -> Statistics:
        p, tile, fields = self.p, (self.setting.rows, self.setting.cols), self.fields
        rows, cols = p.x.shape[0], p.y.shape[0]
        parts = spans(cols, spans_of(p, fields).width)
        carried = p.x.new_empty((fields, rows) if len(parts) > 1 else 0, dtype=torch.float32)
        for span in parts:
            lines = [
                triton.cdiv(n, size)
                for n, size in zip((rows, span[1] - span[0]), tile, strict=True)
            ]
            row_state = p.x.new_empty((lines[1], fields, rows), dtype=torch.float32)
            col_state = p.x.new_empty((lines[0], fields, span[1] - span[0]), dtype=torch.float32)
            if self.stored:
                self._stored_tiles(span, row_state, col_state)
            else:
                self._tiles(span, row_state, col_state)
            merge.merge(
                self.made, self.units, row_state, col_state, carried, span, cols, self.terms
            )
        return self.made

    def _tiles(self, span: Span, row_state: Tensor, col_state: Tensor) -> None:
        p, kept = self.p, (self.made.kept,) * 2
        if self.stride is not None:
            tile = self.setting.rows, self.setting.cols
            kept = operand(self.made.kept[0], *tile), operand(self.made.kept[-1], *tile)
        *_, teacher_scale = teacher_arguments(p)
        x, y, teacher_x, teacher_y = operands(p, self.setting)
        programs = row_state.shape[0] * col_state.shape[0]
        D, teacher_D = p.x.shape[1], p.x.shape[1] if p.teacher_x is None else p.teacher_x.shape[1]
        statistics_kernel[(programs,)](
            x, y, teacher_x, teacher_y, p.scale, teacher_scale, p.image_groups, p.text_groups,
            self.rules, self.units, *kept, row_state, col_state, p.x.shape[0], p.y.shape[0], D,
            teacher_D,
            *span, self.stride or 0, self.setting.group, KEEP=self.stride is not None,
            **self.terms, **self.setting.tile(),
            **launch.widening(p.x), **self.setting.options(),
        )  # fmt: skip

    def _stored_tiles(self, span: Span, row_state: Tensor, col_state: Tensor) -> None:
        p, rows = self.p, self.p.x.shape[0]
        *_, teacher_scale = teacher_arguments(p)
        if self.stride is not None:
            matrices, before = self.made.kept, 0
        else:
            stride, before = padded(span[1] - span[0]), span[0]
            matrices = p.x.new_empty((p.matrices, rows, stride), dtype=torch.float32)
        multiply(p, matrices[:, :, span[0] - before :], (0, rows), span)
        programs = row_state.shape[0] * col_state.shape[0]
        stored_statistics_kernel[(programs,)](
            matrices[0], matrices[-1], p.scale, teacher_scale, p.image_groups, p.text_groups,
            self.rules, row_state, col_state, rows, *span, before, matrices.stride(1),
            self.setting.group,
            **self.terms, **self.setting.area(), **self.setting.options(),
        )  # fmt: skip


def forward(
    problem: Problem, memory: Memory, diagnostics: bool = False, neg_sum: bool = False
) -> Statistics:
    """Units and positives, then the tiles and their merge, span by span: no wait for the device."""
    return _Forward(problem, memory, diagnostics, neg_sum).run()
