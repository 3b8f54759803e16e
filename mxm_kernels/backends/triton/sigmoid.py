"""The sigmoid statistics: the tiles of the other operator, with softplus.

Sums need no maximum, so a statistic is one number and the lines of a scratch are merged by
a plain sum over them, in a fixed order. Nothing is kept: backward multiplies again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import Memory, Problem, SigmoidStatistics
from mxm_kernels.backends.tiles import Span
from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.chunks import padded, spans
from mxm_kernels.backends.triton.plan import check_budget, spans_of
from mxm_kernels.backends.triton.rows_of_features import units_and_positives
from mxm_kernels.backends.triton.rules import Rules, both_sides, removed_by_ids, rules_of
from mxm_kernels.backends.triton.settings import Launch
from mxm_kernels.backends.triton.sigmoid_terms import softplus
from mxm_kernels.backends.triton.stored import multiply
from mxm_kernels.backends.triton.tile import (
    operand,
    place_of,
    prepared,
    products,
    tile_places,
    valid_scale,
)


@triton.jit
def _softplus_sums(
    S, s, b, image_groups, text_groups, rules, row_state, col_state, row_block, col_block,
    M, first, last, TOLD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sums of softplus(s S + b) over the negatives of a tile's rows and columns."""
    row = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    col = first + col_block * BLOCK_N + tl.arange(0, BLOCK_N)
    row_inside, col_inside = row < M, col < last
    of_row = tl.load(image_groups + row, mask=row_inside, other=0)
    of_col = tl.load(text_groups + col, mask=col_inside, other=0)
    left_out = (of_row[:, None] == of_col[None, :]) | ~(row_inside[:, None] & col_inside[None, :])
    logit = S * s + b
    if TOLD:
        row_at, col_at = tl.minimum(row, M - 1), tl.minimum(col, last - 1)
        row_offset, col_offset = both_sides(rules[0], row_at, col_at, M)
        logit += row_offset + col_offset
        left_out = left_out | removed_by_ids(rules, row_at, col_at, M)
    terms = tl.where(left_out, 0.0, softplus(logit))
    row_line = row_state + col_block.to(tl.int64) * M
    col_line = col_state + row_block.to(tl.int64) * (last - first)
    tl.store(row_line + row, tl.sum(terms, 1), mask=row_inside)
    tl.store(col_line + col - first, tl.sum(terms, 0), mask=col_inside)


# A ragged batch changes these numbers at every step; specialising on them would recompile.
@triton.jit(do_not_specialize=["M", "N", "first", "last", "group"])
def sigmoid_statistics_kernel(
    x,  # (M, D), a pointer or a descriptor
    y,  # (N, D)
    scale,  # ()
    bias,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    rules,  # five vectors (M + N,), not read unless TOLD
    row_state,  # (column blocks, M) out
    col_state,  # (row blocks, last - first) out
    M,
    N,
    D,
    first,  # first column of this launch
    last,  # and the one after its last
    group,
    TOLD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Partial sums of a tile of 16-bit features' S, which it multiplies."""
    row_block, col_block = place_of(tl.program_id(0), M, last - first, group, BLOCK_M, BLOCK_N)
    S = products(
        x, y, row_block * BLOCK_M, first + col_block * BLOCK_N, M, N, D,
        BLOCK_M, BLOCK_N, BLOCK_D, WIDEN,
    )  # fmt: skip
    _softplus_sums(
        S, valid_scale(scale), tl.load(bias), image_groups, text_groups, rules,
        row_state, col_state, row_block, col_block, M, first, last, TOLD, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@triton.jit(do_not_specialize=["M", "first", "last", "group"])
def stored_sigmoid_statistics_kernel(
    S,  # (M, stride) float32, from column ``first`` on
    scale,  # ()
    bias,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    rules,  # five vectors (M + N,), not read unless TOLD
    row_state,  # (column blocks, M) out
    col_state,  # (row blocks, last - first) out
    M,
    first,  # first column of this launch
    last,  # and the one after its last
    stride,
    group,
    TOLD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Partial sums of a tile of S that lies in memory."""
    row_block, col_block = place_of(tl.program_id(0), M, last - first, group, BLOCK_M, BLOCK_N)
    corner, inner = tile_places(row_block * BLOCK_M, col_block * BLOCK_N, stride, BLOCK_M, BLOCK_N)
    below = (row_block * BLOCK_M + tl.arange(0, BLOCK_M) < M)[:, None]
    _softplus_sums(
        tl.load(S + corner + inner, mask=below, other=0.0), valid_scale(scale), tl.load(bias),
        image_groups, text_groups, rules, row_state, col_state,
        row_block, col_block, M, first, last, TOLD, BLOCK_M, BLOCK_N,
    )  # fmt: skip


def forward(problem: Problem, bias: Tensor, memory: Memory) -> SigmoidStatistics:
    """Allocate, launch, sum the lines: no wait for the device."""
    p, made = prepared(problem), problem.allocate(diagnostics=False)
    out = SigmoidStatistics(made.neg_lse, made.positives)
    rules = rules_of(p)
    units_and_positives(p, made, None if rules is None else rules[0])
    stored = p.x.dtype == torch.float32
    setting = launch.pick_placed("stored_sigmoid_statistics" if stored else "sigmoid_statistics", p)
    check_budget(p, memory)
    rows, cols = len(p.x), len(p.y)
    for first, last in spans(cols, spans_of(p, 1).width):
        lines = -(-(last - first) // setting.cols), -(-rows // setting.rows)
        row_state = p.x.new_empty((lines[0], rows), dtype=torch.float32)
        col_state = p.x.new_empty((lines[1], last - first), dtype=torch.float32)
        run = _stored_tiles if stored else _tiles
        run(p, bias, rules, setting, (first, last), row_state, col_state)
        torch.sum(col_state, 0, out=out.softplus_sum[rows + first : rows + last])
        of_rows = row_state.sum(0)
        if first:
            out.softplus_sum[:rows] += of_rows
        else:
            out.softplus_sum[:rows] = of_rows
    return out


def _tiles(
    p: Problem,
    bias: Tensor,
    rules: Rules | None,
    setting: Launch,
    span: Span,
    row_state: Tensor,
    col_state: Tensor,
) -> None:
    x, y = operand(p.x, setting.rows, setting.depth), operand(p.y, setting.cols, setting.depth)
    sigmoid_statistics_kernel[(len(row_state) * len(col_state),)](
        x, y, p.scale, bias, p.image_groups, p.text_groups, rules, row_state, col_state,
        len(p.x), len(p.y), p.x.shape[1], *span, setting.group, TOLD=p.told, **setting.tile(),
        **launch.widening(p.x), **setting.options(),
    )  # fmt: skip


def _stored_tiles(
    p: Problem,
    bias: Tensor,
    rules: Rules | None,
    setting: Launch,
    span: Span,
    row_state: Tensor,
    col_state: Tensor,
) -> None:
    S = p.x.new_empty((1, len(p.x), padded(span[1] - span[0])), dtype=torch.float32)
    multiply(p, S, (0, len(p.x)), span)
    stored_sigmoid_statistics_kernel[(len(row_state) * len(col_state),)](
        S, p.scale, bias, p.image_groups, p.text_groups, rules, row_state, col_state,
        len(p.x), *span, S.stride(1), setting.group, TOLD=p.told, **setting.area(),
        **setting.options(),
    )  # fmt: skip
