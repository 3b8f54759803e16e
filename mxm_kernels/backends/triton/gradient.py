"""Backward: kernels write tiles of dS into a bounded workspace, BLAS multiplies them.

Where forward kept S and T, a kernel reads them; of 16-bit products only for the negatives and their
sum for the scale, since the statistics and the positives are of the float32 products. Elsewhere
they are multiplied again in the tile that needs them (``stored`` has the three ways). Recomputing S
(and T) once and handing dS in the dtype of the features to the vendor's matrix product costs 4
products without a teacher and 6 with one; recomputing it inside each of two gradient kernels would
cost 5 and 8. With what is kept it costs 3 and 4, forward's included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl

from mxm_kernels.backends.fixed_point import GREATEST_LOGIT
from mxm_kernels.backends.interface import (
    Gradients,
    Memory,
    Needs,
    Problem,
    Statistics,
    Upstream,
)
from mxm_kernels.backends.tiles import GradientSum, Span
from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.exponentials import two_exponentials, two_sided
from mxm_kernels.backends.triton.fixed_point import from_fixed_point, is_fine, tops_of
from mxm_kernels.backends.triton.line_sums import LineSums
from mxm_kernels.backends.triton.positives import positive_gradients
from mxm_kernels.backends.triton.rules import rules_of
from mxm_kernels.backends.triton.scale_gradient import Told, scale_gradient
from mxm_kernels.backends.triton.settings import Launch
from mxm_kernels.backends.triton.stored import Chunk, Chunks
from mxm_kernels.backends.triton.tile import (
    operands,
    place_of,
    prepared,
    products,
    store_tile,
    teacher_arguments,
    tile_places,
)
from mxm_kernels.backends.triton.told_gradient import store_lines, told_gradient
from mxm_kernels.backends.triton.unit import Unit, factor_of, raise_vectors, unit_for
from mxm_kernels.backends.triton.workspace import walk


@triton.jit
def load_side(n, dn, groups, at, u):
    """What the negatives' gradient takes of rows or columns: n, u dn and their groups."""
    return tl.load(n + at), tl.load(dn + at) * u, tl.load(groups + at)


@triton.jit
def negatives_alone(grad, row_groups, col_groups, inside):
    """A tile of dS with 0 at positives and outside.

    A row or column without a negative has n = -inf and garbage, all of it at positives.
    """
    return tl.where((row_groups[:, None] == col_groups[None, :]) | ~inside, 0.0, grad)


_CHUNK = ["M", "N", "first_row", "last_row", "first_col", "last_col", "group", "side_sums"]


# A ragged batch changes these numbers at every step; specialising on them would recompile.
@triton.jit(do_not_specialize=_CHUNK)
def gradient_kernel(
    x,  # (M, D), a pointer or a descriptor
    y,  # (N, D)
    teacher_x,  # (M, TEACHER_D)
    teacher_y,  # (N, TEACHER_D)
    scale,  # ()
    teacher_scale,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    rules,  # five vectors (M + N,), not read unless TOLD
    tops,  # of the parts, not read unless COARSE
    n,  # (M + N,)
    t,  # (M + N,)
    dn,  # (M + N,)
    du,  # (M + N,)
    dm,  # (M + N,) by the sums of S over the negatives, not read unless NEG_SUM
    removed,  # (M + N,) twice, log-sum-exp of removed pairs and its gradient, for TOLD and SOFT
    lines,  # three scratches out, unless not TOLD
    dS,  # (height, stride) out
    M,
    N,
    D,
    TEACHER_D,
    first_row,
    last_row,
    first_col,
    last_col,
    stride,
    group,
    side_sums,  # whether the sums of the rows and columns of dS are wanted
    TEACHER: tl.constexpr,
    SOFT: tl.constexpr,  # whether T is summed; else the rules alone read it
    NEG_SUM: tl.constexpr,
    TOLD: tl.constexpr,
    COARSE: tl.constexpr,  # only tiles for which 16 bits are too coarse
    MOST: tl.constexpr,  # logit for which they are fine enough
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Tiles of u dS, one a program, of the rows and columns from first to last.

    u is the scale, or what ``unit`` makes of it.

    The positives' own gradient is missing here; ``positives`` overwrites their entries.
    """
    height, width = last_row - first_row, last_col - first_col
    row_block, col_block = place_of(tl.program_id(0), height, width, group, BLOCK_M, BLOCK_N)
    own_row, own_col = row_block * BLOCK_M, col_block * BLOCK_N
    tile_row, tile_col = first_row + own_row, first_col + own_col
    if COARSE:
        fine = is_fine(tops, scale, teacher_scale, tile_row, tile_col, M, N, TEACHER, MOST)
        if fine:
            return
    # What only the rest needs comes after the product: before it, sm_90 spills 8 bytes a thread.
    S = products(x, y, tile_row, tile_col, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, WIDEN)
    rows, cols = tile_row + tl.arange(0, BLOCK_M), tile_col + tl.arange(0, BLOCK_N)
    below = rows < last_row
    inside = below[:, None] & (cols < last_col)[None, :]
    row, col = tl.minimum(rows, last_row - 1), tl.minimum(cols, last_col - 1)
    s = tl.load(scale)
    u, _ = factor_of(s, UNIT)
    if TOLD:
        T = S
        if TEACHER:
            T = products(
                teacher_x, teacher_y, tile_row, tile_col, M, N, TEACHER_D,
                BLOCK_M, BLOCK_N, BLOCK_D, WIDEN,
            )  # fmt: skip
        grad = told_gradient(
            S, T, s, tl.load(teacher_scale), image_groups, text_groups, rules, removed,
            n, t, dn, du, dm, row, col, inside, M, TEACHER, SOFT, NEG_SUM,
        )  # fmt: skip
        store_lines(grad, S, lines, side_sums, own_row, own_col, height, width, BLOCK_M, BLOCK_N)
        grad *= u
    else:
        rows_side = load_side(n, dn, image_groups, row, u)
        cols_side = load_side(n + M, dn + M, text_groups, col, u)
        grad = two_sided(S, s, rows_side[0], cols_side[0], rows_side[1], cols_side[1])
        grad = negatives_alone(grad, rows_side[2], cols_side[2], inside)
        if TEACHER:
            T = products(
                teacher_x, teacher_y, tile_row, tile_col, M, N, TEACHER_D,
                BLOCK_M, BLOCK_N, BLOCK_D, WIDEN,
            )  # fmt: skip
            t_rows, t_cols = tl.load(t + row), tl.load(t + M + col)
            du_rows, du_cols = tl.load(du + row) * u, tl.load(du + M + col) * u
            grad += two_sided(T, tl.load(teacher_scale), t_rows, t_cols, du_rows, du_cols)
        if NEG_SUM:  # last: sums of rows and columns would be in registers beside the products
            more = (tl.load(dm + row) * u)[:, None] + (tl.load(dm + M + col) * u)[None, :]
            groups = tl.load(image_groups + row), tl.load(text_groups + col)
            grad += negatives_alone(more, *groups, inside)
    store_tile(dS, grad, own_row, own_col, stride, below, BLOCK_M, BLOCK_N)


@triton.jit(do_not_specialize=[*_CHUNK, "source_row", "source_col"])
def stored_gradient_kernel(
    S,  # (rows, source_stride) float32, or int16 in units
    T,  # (rows, source_stride), not read without a teacher
    scale,  # ()
    teacher_scale,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    rules,  # five vectors (M + N,), not read unless TOLD
    units,  # (1 or 2, M + N), not read unless FIXED
    tops,  # of the parts, not read unless FIXED
    n,  # (M + N,)
    t,  # (M + N,)
    dn,  # (M + N,)
    du,  # (M + N,)
    dm,  # (M + N,) by the sums of S over the negatives, not read unless NEG_SUM
    removed,  # (M + N,) twice, log-sum-exp of removed pairs and its gradient, for TOLD and SOFT
    lines,  # three scratches out, unless not TOLD
    dS,  # (height, stride) out; may be S
    M,
    N,
    first_row,
    last_row,
    first_col,
    last_col,
    source_row,  # the row and the column that S and T begin with
    source_col,
    source_stride,
    stride,
    group,
    side_sums,  # whether the sums of the rows and columns of dS are wanted
    TEACHER: tl.constexpr,
    SOFT: tl.constexpr,  # whether T is summed; else the rules alone read it
    NEG_SUM: tl.constexpr,
    TOLD: tl.constexpr,
    FIXED: tl.constexpr,  # int16; parts for which that is too coarse are left out
    MOST: tl.constexpr,  # logit for which they are fine enough
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Tiles of u dS as in ``gradient_kernel``, of S and T that lie in memory."""
    height, width = last_row - first_row, last_col - first_col
    row_block, col_block = place_of(tl.program_id(0), height, width, group, BLOCK_M, BLOCK_N)
    own_row, own_col = row_block * BLOCK_M, col_block * BLOCK_N
    tile_row, tile_col = first_row + own_row, first_col + own_col
    if FIXED:
        fine = is_fine(tops, scale, teacher_scale, tile_row, tile_col, M, N, TEACHER, MOST)
        if fine == 0:
            return
    rows, cols = tile_row + tl.arange(0, BLOCK_M), tile_col + tl.arange(0, BLOCK_N)
    below = rows < last_row
    inside = below[:, None] & (cols < last_col)[None, :]
    row, col = tl.minimum(rows, last_row - 1), tl.minimum(cols, last_col - 1)
    corner, inner = tile_places(
        tile_row - source_row, tile_col - source_col, source_stride, BLOCK_M, BLOCK_N
    )
    # Integers without a mask over columns, 16 bytes at a time: rows have room for whole tiles.
    loaded = below[:, None] if FIXED else inside
    S_tile = tl.load(S + corner + inner, mask=loaded, other=0)
    if TEACHER:
        T_tile = tl.load(T + corner + inner, mask=loaded, other=0)
    s = tl.load(scale)
    u, _ = factor_of(s, UNIT)
    if FIXED:
        S_tile = from_fixed_point(S_tile, tl.load(units + row), tl.load(units + M + col))
    if TOLD:
        told_T = S_tile
        if TEACHER:
            told_T = T_tile
            if FIXED:
                of_T = units + M + N
                told_T = from_fixed_point(T_tile, tl.load(of_T + row), tl.load(of_T + M + col))
        grad = told_gradient(
            S_tile, told_T, s, tl.load(teacher_scale), image_groups, text_groups, rules, removed,
            n, t, dn, du, dm, row, col, inside, M, TEACHER, SOFT, NEG_SUM,
        )  # fmt: skip
        store_lines(
            grad, S_tile, lines, side_sums, own_row, own_col, height, width, BLOCK_M, BLOCK_N
        )
        grad *= u
    else:
        rows_side = load_side(n, dn, image_groups, row, u)
        cols_side = load_side(n + M, dn + M, text_groups, col, u)
        grad = two_exponentials(S_tile, s, rows_side[0], cols_side[0], rows_side[1], cols_side[1])
        grad = negatives_alone(grad, rows_side[2], cols_side[2], inside)
        if TEACHER:
            if FIXED:
                of_T = units + M + N
                T_tile = from_fixed_point(T_tile, tl.load(of_T + row), tl.load(of_T + M + col))
            t_rows, t_cols = tl.load(t + row), tl.load(t + M + col)
            du_rows, du_cols = tl.load(du + row) * u, tl.load(du + M + col) * u
            grad += two_exponentials(
                T_tile, tl.load(teacher_scale), t_rows, t_cols, du_rows, du_cols
            )
        if NEG_SUM:  # last: sums of rows and columns would be in registers beside the products
            more = (tl.load(dm + row) * u)[:, None] + (tl.load(dm + M + col) * u)[None, :]
            groups = tl.load(image_groups + row), tl.load(text_groups + col)
            grad += negatives_alone(more, *groups, inside)
    store_tile(dS, grad, own_row, own_col, stride, below, BLOCK_M, BLOCK_N)


class _Backward:
    """One call: what the launches of its chunks share."""

    def __init__(
        self,
        p: Problem,
        statistics: Statistics,
        upstream: Upstream,
        unit: Unit,
        sums: LineSums | None,
    ) -> None:
        self.p, self.statistics, self.unit, self.sums = p, statistics, unit, sums
        self.fixed_point = statistics.kept.numel() > 0 and statistics.kept.dtype == torch.int16
        self.tops = tops_of(p, statistics.units) if self.fixed_point else statistics.units
        self.most = GREATEST_LOGIT.get(p.x.dtype, 0.0)
        self.teacher = teacher_arguments(p)
        upstream_of = upstream.neg_lse, upstream.teacher_mean, upstream.neg_sum
        self.rows = statistics.neg_lse, statistics.teacher_lse, *upstream_of
        self.rules = rules_of(p)
        # Where nothing is removed, anything stands for what removed pairs have.
        self.removed = statistics.excluded_lse, upstream.excluded_lse
        if not len(upstream.excluded_lse):
            self.removed = statistics.neg_lse, upstream.neg_lse
        self.terms = {
            "TEACHER": p.has_teacher,
            "SOFT": p.has_soft,
            "NEG_SUM": len(upstream.neg_sum) > 0,
            "TOLD": p.told,
        }

    def fill(self, chunk: Chunk, rows: Span, cols: Span) -> None:
        """Write u dS of the negatives."""
        stored = chunk.products is not None
        if stored:
            self._stored_tiles(chunk, rows, cols)
        if not stored or self.fixed_point:
            self._tiles(chunk, rows, cols, more=stored)

    @contextmanager
    def _lines(
        self, setting: Launch, rows: Span, cols: Span, more: bool = False
    ) -> Iterator[dict[str, Any]]:
        """What a launch over a chunk takes of the rules; its lines are added up after it."""
        if self.sums is None:
            yield {"removed": None, "lines": None, "side_sums": 0}
            return
        lines = self.sums.lines(setting, rows, cols, partly=self.fixed_point)
        yield {"removed": self.removed, "lines": lines, "side_sums": int(self.sums.of_rows)}
        self.sums.add(lines, setting, rows, cols, more=more)

    def _tiles(self, chunk: Chunk, rows: Span, cols: Span, more: bool) -> None:
        """Multiply S and T again: where kept integers are too coarse, or everywhere."""
        p, neg_sum = self.p, self.terms["NEG_SUM"]
        setting = launch.pick_placed("gradient", p, neg_sum=neg_sum)
        tiles = setting.tiles(rows[1] - rows[0], cols[1] - cols[0])
        x, y, teacher_x, teacher_y = operands(p, setting)
        with self._lines(setting, rows, cols, more) as told:
            gradient_kernel[(tiles,)](
                x, y, teacher_x, teacher_y, p.scale, self.teacher[2],
                p.image_groups, p.text_groups, self.rules, self.tops, *self.rows,
                told["removed"], told["lines"], chunk.dS,
                p.x.shape[0], p.y.shape[0], p.x.shape[1], self.teacher[0].shape[1], *rows, *cols,
                chunk.dS.stride(0), setting.group, told["side_sums"], **self.terms,
                COARSE=self.fixed_point, MOST=self.most, UNIT=self.unit.kind, **setting.tile(),
                **launch.widening(p.x), **setting.options(),
            )  # fmt: skip

    def _stored_tiles(self, chunk: Chunk, rows: Span, cols: Span) -> None:
        """Read S and T, as integers where these are fine enough."""
        p, setting = self.p, launch.pick("stored_gradient", self.p)
        tiles = setting.tiles(rows[1] - rows[0], cols[1] - cols[0])
        assert chunk.products is not None
        with self._lines(setting, rows, cols) as told:
            stored_gradient_kernel[(tiles,)](
                chunk.products[0], chunk.products[-1], p.scale, self.teacher[2],
                p.image_groups, p.text_groups, self.rules, self.statistics.units, self.tops,
                *self.rows, told["removed"], told["lines"], chunk.dS,
                p.x.shape[0], p.y.shape[0], *rows, *cols, *chunk.first, chunk.products.stride(1),
                chunk.dS.stride(0), setting.group, told["side_sums"], **self.terms,
                FIXED=self.fixed_point, MOST=self.most, UNIT=self.unit.kind, **setting.area(),
                **setting.options(),
            )  # fmt: skip


def backward(
    problem: Problem, statistics: Statistics, upstream: Upstream, needs: Needs, memory: Memory
) -> Gradients:
    """Walk the workspace over the M x N plane: no wait for the device."""
    p = prepared(problem)
    chunks = Chunks(p, memory, statistics.kept)
    # Upstream gradients may be of any size. The greatest is raised to 1, for float16 to 2**10:
    # entries of dS are shares of a probability, far below float16's smallest number (6e-8).
    raised, lowered = raise_vectors(upstream, p.x.dtype)
    upstream, unit = Upstream(*raised), unit_for(p.x, p.scale, lowered)
    plane = LineSums(p, needs.logit_offsets) if p.told else None
    run = _Backward(p, statistics, upstream, unit, plane)
    sums = GradientSum(problem, needs, unit.lower if unit.early else None, chunk=chunks.shape)
    terms = statistics.teacher_lse, upstream.teacher_mean
    told = of_pairs = None
    if run.rules is not None and plane is not None:
        pair_dS = torch.empty_like(upstream.positives)
        of_pairs = run.rules[1], pair_dS
        told = Told.of(p, run.rules[0], pair_dS, plane)

    def fill(chunk: Chunk, rows: Span, cols: Span) -> None:
        run.fill(chunk, rows, cols)
        positive_gradients(p, upstream.positives, unit, chunk.dS, rows, cols, terms, of_pairs)

    walk(p, chunks, sums, fill)
    made = sums.finish(torch.empty_like(p.scale), None if told is None else told.doffsets)
    late = [] if unit.early else [made.x, made.y]
    if needs.scale or needs.logit_offsets or late:
        dscale = scale_gradient(p, statistics, upstream, unit, late, told)
        made = made._replace(scale=dscale)
    return made
