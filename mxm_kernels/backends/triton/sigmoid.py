"""The sigmoid statistics: the grid and the workspace of the other operator, with softplus.

Sums need no maximum, so a statistic is one number and the lines of a scratch are merged by
a plain sum over them, in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import Memory, Problem, SigmoidStatistics
from mxm_kernels.backends.tiles import split
from mxm_kernels.backends.triton import launch, positives
from mxm_kernels.backends.triton.positives import store_positives
from mxm_kernels.backends.triton.statistics import grid, widest
from mxm_kernels.backends.triton.tile import padded, products, softplus, valid_scale


# A ragged batch changes these numbers at every step; specialising on them would recompile.
@triton.jit(do_not_specialize=["M", "N", "first", "width", "pairs"])
def sigmoid_statistics_kernel(
    x,  # (M, D)
    y,  # (N, D)
    scale,  # ()
    bias,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    owners,  # (2 pairs,) int64
    pair_texts,  # (pairs,) int64
    slot_places,  # (pairs,) int64
    row_state,  # (Q, M) out
    col_state,  # (P, width) out
    positives,  # (2 pairs,) out
    M,
    N,
    D,
    first,  # first column of this launch
    width,  # number of columns of this launch
    pairs,  # 0: another launch has them
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    FLOAT8: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PAIR_D: tl.constexpr,
):
    """Sums of softplus(S + b) of rows 0:M, columns first:first + width, and the positives."""
    p, q = tl.program_id(0), tl.program_id(1)
    row_line = row_state + q.to(tl.int64) * M
    col_line = col_state + p.to(tl.int64) * width
    s, b = valid_scale(scale), tl.load(bias)
    for row_block in range(p, tl.cdiv(M, BLOCK_M), tl.num_programs(0)):
        rows = row_block * BLOCK_M + tl.arange(0, BLOCK_M)
        row_inside = rows < M
        row = tl.minimum(rows, M - 1)
        row_group = tl.load(image_groups + row)
        total = tl.load(row_line + rows, mask=rows < tl.where(first > 0, M, 0), other=0.0)
        for col_block in range(q, tl.cdiv(width, BLOCK_N), tl.num_programs(1)):
            places = col_block * BLOCK_N + tl.arange(0, BLOCK_N)
            col_inside = places < width
            col = tl.minimum(first + places, N - 1)
            inside = row_inside[:, None] & col_inside[None, :]
            # The column line was last written by this program, for its previous row block.
            known = places < tl.where(row_block != p, width, 0)

            S = products(x, y, row, col, D, BLOCK_D, PRECISION, WIDEN, FLOAT8) * s
            same = row_group[:, None] == tl.load(text_groups + col)[None, :]
            terms = tl.where(same | ~inside, 0.0, softplus(S + b))
            total += tl.sum(terms, 1)
            before = tl.load(col_line + places, mask=known, other=0.0)
            tl.store(col_line + places, before + tl.sum(terms, 0), mask=col_inside)
        tl.store(row_line + rows, total, mask=row_inside)
        # Column lines written above are read by other threads in the next row block.
        tl.debug_barrier()
    program, programs = p * tl.num_programs(1) + q, tl.num_programs(0) * tl.num_programs(1)
    store_positives(
        x, y, scale, owners, pair_texts, slot_places, positives, pairs, D, program, programs,
        BLOCK_P, PAIR_D,
    )  # fmt: skip


def forward(problem: Problem, bias: Tensor, memory: Memory) -> SigmoidStatistics:
    """Allocate, launch, sum the lines: no wait for the device."""
    p, made = padded(problem), problem.allocate(diagnostics=False)
    out = SigmoidStatistics(made.neg_lse, made.positives)
    setting = launch.pick("sigmoid_statistics", p)
    rows, cols = p.x.shape[0], p.y.shape[0]
    spans = list(split(cols, widest(p, setting, fields=1)))
    P, Q = grid(p, setting, spans[0][1])
    row_state = p.x.new_empty((Q, rows), dtype=torch.float32)
    for first, last in spans:
        col_state = p.x.new_empty((P, last - first), dtype=torch.float32)
        sigmoid_statistics_kernel[(P, Q)](
            p.x, p.y, p.scale, bias, p.image_groups, p.text_groups, p.owners, p.pair_texts,
            p.slot_places, row_state, col_state, out.positives, rows, cols, p.x.shape[1],
            first, last - first, p.pairs if last == cols else 0, **setting.tile(),
            **launch.product_options(p.x.dtype, p.x.device), **positives.BLOCK, **setting.options(),
        )  # fmt: skip
        torch.sum(col_state, 0, out=out.softplus_sum[rows + first : rows + last])
    torch.sum(row_state, 0, out=out.softplus_sum[:rows])
    return out
