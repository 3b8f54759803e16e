"""dS of sigmoid losses, tile by tile into the workspace, with the loss itself from the same tiles.

Where the upstream gradients are the weights of the loss, known beforehand, the sums of softplus
that a tile gives are its part of the loss, and there is no forward to run. The backward of the
sigmoid statistics leaves those sums unread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import (
    Memory,
    Needs,
    Problem,
    SigmoidGradients,
    SigmoidLoss,
    SigmoidStatistics,
    SigmoidWeights,
)
from mxm_kernels.backends.tiles import GradientSum, Span
from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.exponentials import exp
from mxm_kernels.backends.triton.line_sums import Lines, LineSums
from mxm_kernels.backends.triton.positives import BLOCK, positive_gradients
from mxm_kernels.backends.triton.rules import both_sides, removed_by_ids, rules_of
from mxm_kernels.backends.triton.scale_gradient import offset_gradients
from mxm_kernels.backends.triton.settings import Launch
from mxm_kernels.backends.triton.sigmoid_pairs import sigmoid_pairs_kernel
from mxm_kernels.backends.triton.sigmoid_terms import sigmoid_with, softplus_with
from mxm_kernels.backends.triton.stored import Chunk, Chunks
from mxm_kernels.backends.triton.tile import (
    operand,
    place_of,
    prepared,
    products,
    store_tile,
    tile_places,
    valid_scale,
)
from mxm_kernels.backends.triton.told_gradient import store_side_lines
from mxm_kernels.backends.triton.unit import (
    KEPT,
    Unit,
    factor_of,
    raise_vectors,
    unit_for,
)
from mxm_kernels.backends.triton.workspace import walk


@triton.jit
def _sigmoid_tile(
    S, s, bias, image_groups, text_groups, rules, weights, dS, partial, lines, sums, M,
    first_row, last_row, first_col, last_col, own_row, own_col, stride, side_sums,
    TOLD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Gradient u dS of a tile of products S, and its three sums over the tile's rows."""
    rows = first_row + own_row + tl.arange(0, BLOCK_M)
    cols = first_col + own_col + tl.arange(0, BLOCK_N)
    below = rows < last_row
    inside = below[:, None] & (cols < last_col)[None, :]
    row, col = tl.minimum(rows, last_row - 1), tl.minimum(cols, last_col - 1)
    logit = S * s + tl.load(bias)
    weight = tl.load(weights + row)[:, None] + tl.load(weights + M + col)[None, :]
    same = tl.load(image_groups + row)[:, None] == tl.load(text_groups + col)[None, :]
    weight = tl.where(same | ~inside, 0.0, weight)
    if TOLD:
        weight = tl.where(removed_by_ids(rules, row, col, M), 0.0, weight)
        row_offset, col_offset = both_sides(rules[0], row, col, M)
        logit += row_offset + col_offset
    # One exponential for both, and the first is summed before the second is begun: in another
    # order, or with the weight beside the quotient, sm_80 and sm_90 spill 8 to 200 bytes a thread.
    e = exp(-tl.abs(logit))
    line = partial + tl.arange(0, BLOCK_M)
    tl.store(line + 2 * sums, tl.sum(weight * softplus_with(logit, e), axis=1))
    grad = sigmoid_with(logit, e, weight)
    tl.store(line, tl.sum(grad * S, axis=1))
    tl.store(line + sums, tl.sum(grad, axis=1))
    if TOLD:
        height, width = last_row - first_row, last_col - first_col
        store_side_lines(grad, lines, side_sums, own_row, own_col, height, width, BLOCK_M, BLOCK_N)
    u, _ = factor_of(s, UNIT)
    store_tile(dS, grad * u, own_row, own_col, stride, below, BLOCK_M, BLOCK_N)


_CHUNK = ["M", "N", "first_row", "last_row", "first_col", "last_col", "sums", "group", "side_sums"]


@triton.jit(do_not_specialize=_CHUNK)
def sigmoid_gradient_kernel(
    x,  # (M, D), a pointer or a descriptor
    y,  # (N, D)
    scale,  # ()
    bias,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    rules,  # five vectors (M + N,), not read unless TOLD
    weights,  # (M + N,) upstream gradients, which the loss is weighted by
    dS,  # (height, stride) out
    partial,  # (3, sums) out, by rows of tiles: dS times the product, dS, loss; of the negatives
    lines,  # scratches of ``store_side_lines`` out, unless not TOLD
    M,
    N,
    D,
    first_row,
    last_row,
    first_col,
    last_col,
    stride,
    sums,
    group,
    side_sums,  # whether the sums of the rows and columns of dS are wanted
    TOLD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Tiles of u dS, one a program, of the rows and columns from first to last.

    u is the scale, or what ``unit`` makes of it.
    The positives' own gradient is missing here; their own kernels overwrite their entries.
    """
    program = tl.program_id(0)
    height, width = last_row - first_row, last_col - first_col
    row_block, col_block = place_of(program, height, width, group, BLOCK_M, BLOCK_N)
    own_row, own_col = row_block * BLOCK_M, col_block * BLOCK_N
    S = products(
        x, y, first_row + own_row, first_col + own_col, M, N, D, BLOCK_M, BLOCK_N, BLOCK_D, WIDEN
    )
    _sigmoid_tile(
        S, valid_scale(scale), bias, image_groups, text_groups, rules, weights, dS,
        partial + program * BLOCK_M, lines, sums, M, first_row, last_row, first_col, last_col,
        own_row, own_col, stride, side_sums, TOLD, BLOCK_M, BLOCK_N, UNIT,
    )  # fmt: skip


@triton.jit(do_not_specialize=_CHUNK)
def stored_sigmoid_gradient_kernel(
    S,  # (height, stride) float32; dS takes its place
    scale,  # ()
    bias,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    rules,  # five vectors (M + N,), not read unless TOLD
    weights,  # (M + N,)
    partial,  # (3, sums) out, as above
    lines,  # as above
    M,
    first_row,
    last_row,
    first_col,
    last_col,
    stride,
    sums,
    group,
    side_sums,  # whether the sums of the rows and columns of dS are wanted
    TOLD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Tiles of u dS in the place of the products S."""
    program = tl.program_id(0)
    height, width = last_row - first_row, last_col - first_col
    row_block, col_block = place_of(program, height, width, group, BLOCK_M, BLOCK_N)
    own_row, own_col = row_block * BLOCK_M, col_block * BLOCK_N
    corner, inner = tile_places(own_row, own_col, stride, BLOCK_M, BLOCK_N)
    below = (first_row + own_row + tl.arange(0, BLOCK_M) < last_row)[:, None]
    within = below & (first_col + own_col + tl.arange(0, BLOCK_N) < last_col)[None, :]
    S_tile = tl.load(S + corner + inner, mask=within, other=0.0)
    _sigmoid_tile(
        S_tile, valid_scale(scale), bias, image_groups, text_groups, rules, weights, S,
        partial + program * BLOCK_M, lines, sums, M, first_row, last_row, first_col, last_col,
        own_row, own_col, stride, side_sums, TOLD, BLOCK_M, BLOCK_N, UNIT,
    )  # fmt: skip


# (workspace, its rows, its columns, (3, programs) out sums) -> None: writes the positives' part.
Positives = Callable[[Tensor, Span, Span, Tensor], None]


class _Told:
    """What the walk takes of a problem's rules, and the offsets' gradient that it gives."""

    def __init__(self, p: Problem, needs: Needs, unit: Unit) -> None:
        self.p, self.unit, self.rules = p, unit, rules_of(p)
        # The offsets, and dS of every pair at both of its places; None without rules.
        self.vectors: tuple[Tensor, Tensor] | None = None
        if self.rules is not None:
            pair_dS = p.x.new_empty(2 * p.pairs, dtype=torch.float32)
            self.vectors = self.rules[0], pair_dS
        wanted = needs.logit_offsets and p.told
        self.sums = LineSums(p, True, of_plane=False) if wanted else None

    @contextmanager
    def lines(self, setting: Launch, rows: Span, cols: Span) -> Iterator[Lines | None]:
        """The scratch of a launch over a chunk, which is added up after it."""
        if self.sums is None:
            yield None if self.rules is None else (self.rules[0],) * 3  # not written
            return
        lines = self.sums.lines(setting, rows, cols)
        yield lines
        self.sums.add(lines, setting, rows, cols)

    def gradient(self) -> Tensor | None:
        """(R,) of the offsets; None where it is not wanted."""
        if self.sums is None or self.vectors is None:
            return None
        return offset_gradients(self.p, self.sums.rows, self.vectors[1], self.unit)


def _scalar_sums(
    p: Problem,
    bias: Tensor,
    weights: Tensor,
    unit: Unit,
    sums: GradientSum,
    positives: Positives,
    programs: int,
    chunks: Chunks,
    told: _Told,
) -> Tensor:
    """Walk the workspace over the M x N plane; (3,) the sums, of dS S without s, of dS, the loss.

    ``programs`` that write the positives' part have a place each beside those of the tiles.
    """
    stored = p.x.dtype == torch.float32
    setting = launch.pick("stored_sigmoid_gradient" if stored else "sigmoid_gradient", p)
    rows_of = p.scale, bias, p.image_groups, p.text_groups, told.rules, weights

    totals: list[Tensor] = []

    def fill(chunk: Chunk, rows: Span, cols: Span) -> None:
        tiles = setting.tiles(rows[1] - rows[0], cols[1] - cols[0])
        places, stride = tiles * setting.rows, chunk.dS.stride(0)
        partial = p.x.new_empty((3, places + programs), dtype=torch.float32)
        place = *rows, *cols, stride, partial.shape[1], setting.group, int(told.sums is not None)
        with told.lines(setting, rows, cols) as lines:
            if stored:
                stored_sigmoid_gradient_kernel[(tiles,)](
                    chunk.dS, *rows_of, partial, lines, len(p.x), *place, TOLD=p.told,
                    UNIT=unit.kind, **setting.area(), **setting.options(),
                )  # fmt: skip
            else:
                x, y = (
                    operand(f, b, setting.depth)
                    for f, b in zip(p[:2], (setting.rows, setting.cols), strict=True)
                )
                sigmoid_gradient_kernel[(tiles,)](
                    x, y, *rows_of, chunk.dS, partial, lines, len(p.x), len(p.y), p.x.shape[1],
                    *place, TOLD=p.told, UNIT=unit.kind, **setting.tile(),
                    **launch.widening(p.x), **setting.options(),
                )  # fmt: skip
        positives(chunk.dS, rows, cols, partial[:, places:])
        totals.append(partial.sum(1))

    walk(p, chunks, sums, fill)
    return totals[0] if len(totals) == 1 else torch.stack(totals).sum(0)


def _of_positives(p: Problem, S: Tensor, dS: Tensor, told: _Told) -> Tensor:
    """The sum of dS times the products over the positives, whose S is (2 P,), as dS is."""
    if told.vectors is not None:
        offsets, dS = told.vectors
        images, texts = p.halves(offsets)
        S, dS = S[: p.pairs], dS[: p.pairs]
        S = S - (images.index_select(0, p.pair_images) + texts.index_select(0, p.pair_texts))
    return torch.dot(dS, S / p.scale)  # S over the scale first: S times dS may be no float32


def backward(
    problem: Problem,
    bias: Tensor,
    S: Tensor,
    upstream: SigmoidStatistics,
    needs: Needs,
    memory: Memory,
) -> SigmoidGradients:
    """The gradients of the sigmoid statistics."""
    p = prepared(problem)
    chunks = Chunks(p, memory)
    raised, lowered = raise_vectors(upstream, p.x.dtype)
    given = SigmoidStatistics(*raised)
    unit = unit_for(p.x, p.scale, lowered)
    told = _Told(p, needs, unit)

    def positives(workspace: Tensor, rows: Span, cols: Span, _: Tensor) -> None:
        positive_gradients(p, given.positives, unit, workspace, rows, cols, told=told.vectors)

    sums = GradientSum(problem, needs, unit.lower if unit.early else None, chunk=chunks.shape)
    weights = given.softplus_sum
    dscale, dbias, _ = _scalar_sums(p, bias, weights, unit, sums, positives, 0, chunks, told)
    if needs.scale:
        dscale = dscale + _of_positives(p, S, given.positives, told)
    scalars = torch.stack([dscale, dbias])
    unit._replace(kind=KEPT.value).lower(scalars)
    gradients = sums.finish(scalars[0].clone(), told.gradient())  # not one of two numbers
    if not unit.early:
        for gradient in gradients[:2]:
            unit.lower(gradient)
    return SigmoidGradients(*gradients[:3], scalars[1].clone(), gradients.logit_offsets)


def loss(
    problem: Problem, bias: Tensor, weights: SigmoidWeights, needs: Needs, memory: Memory
) -> SigmoidLoss:
    """The loss and its gradients, with weights of an ordinary size but for float16's dS."""
    p, w, pairs = prepared(problem), weights, problem.pairs
    chunks = Chunks(p, memory)
    programs = triton.cdiv(pairs, BLOCK["BLOCK_P"])
    if p.x.dtype == torch.float16:
        raised, lowered = raise_vectors(w, p.x.dtype)
        w = SigmoidWeights(*raised)
        unit = unit_for(p.x, p.scale, lowered)
    else:
        unit = Unit(p.scale, KEPT.value, None)
    told = _Told(p, needs, unit)

    def positives(workspace: Tensor, rows: Span, cols: Span, partial: Tensor) -> None:
        sigmoid_pairs_kernel[(programs,)](
            p.x, p.y, p.scale, bias, p.owners, p.pair_texts, p.slot_places, *w, told.vectors,
            workspace, partial, pairs, partial.stride(0), *p.x.shape, *rows, *cols,
            workspace.stride(0), WEIGHED=len(w.pairs) > 0, TOLD=p.told, UNIT=unit.kind, **BLOCK,
        )  # fmt: skip

    rescale = unit.lower if unit.early else None
    sums = GradientSum(problem, needs, rescale, chunk=chunks.shape, dtype=p.gradient_dtype)
    totals = _scalar_sums(p, bias, w.rows, unit, sums, positives, programs, chunks, told)
    if unit.early:
        unit._replace(kind=KEPT.value).lower(totals)  # sums of weights times what is not dS
    gradients = sums.finish(p.scale, told.gradient())
    # What is not finite among the features may vanish from the loss, but not from dS S: 0 times it
    # is NaN.
    value = torch.add(totals[2], totals[0], alpha=0)
    return SigmoidLoss(value, gradients.x, gradients.y, totals[:2], gradients.logit_offsets)
