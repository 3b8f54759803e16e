"""dS of sigmoid losses, tile by tile into the workspace, with the loss itself from the same tiles.

Where the upstream gradients are the weights of the loss, known beforehand, the sums of softplus
that a tile gives are its part of the loss, and there is no forward to run. The backward of the
sigmoid statistics leaves those sums unread.
"""

from __future__ import annotations

from collections.abc import Callable

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
from mxm_kernels.backends.triton.positives import BLOCK, pair_products, positive_gradients
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
    S, s, bias, image_groups, text_groups, weights, dS, partial, sums, M,
    first_row, last_row, first_col, last_col, own_row, own_col, stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UNIT: tl.constexpr,
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
    # One exponential for both, and the first is summed before the second is begun: in another
    # order, or with the weight beside the quotient, sm_80 and sm_90 spill 8 to 200 bytes a thread.
    e = exp(-tl.abs(logit))
    line = partial + tl.arange(0, BLOCK_M)
    tl.store(line + 2 * sums, tl.sum(weight * softplus_with(logit, e), axis=1))
    grad = sigmoid_with(logit, e, weight)
    tl.store(line, tl.sum(grad * S, axis=1))
    tl.store(line + sums, tl.sum(grad, axis=1))
    u, _ = factor_of(s, UNIT)
    store_tile(dS, grad * u, own_row, own_col, stride, below, BLOCK_M, BLOCK_N)


_CHUNK = ["M", "N", "first_row", "last_row", "first_col", "last_col", "sums", "group"]


@triton.jit(do_not_specialize=_CHUNK)
def sigmoid_gradient_kernel(
    x,  # (M, D), a pointer or a descriptor
    y,  # (N, D)
    scale,  # ()
    bias,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    weights,  # (M + N,) upstream gradients, which the loss is weighted by
    dS,  # (height, stride) out
    partial,  # (3, sums) out, by rows of tiles: dS times the product, dS, loss; of the negatives
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
        S, valid_scale(scale), bias, image_groups, text_groups, weights, dS,
        partial + program * BLOCK_M, sums, M, first_row, last_row, first_col, last_col,
        own_row, own_col, stride, BLOCK_M, BLOCK_N, UNIT,
    )  # fmt: skip


@triton.jit(do_not_specialize=_CHUNK)
def stored_sigmoid_gradient_kernel(
    S,  # (height, stride) float32; dS takes its place
    scale,  # ()
    bias,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    weights,  # (M + N,)
    partial,  # (3, sums) out, as above
    M,
    first_row,
    last_row,
    first_col,
    last_col,
    stride,
    sums,
    group,
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
        S_tile, valid_scale(scale), bias, image_groups, text_groups, weights, S,
        partial + program * BLOCK_M, sums, M, first_row, last_row, first_col, last_col,
        own_row, own_col, stride, BLOCK_M, BLOCK_N, UNIT,
    )  # fmt: skip


_SPANS = ["M", "first_row", "last_row", "first_col", "last_col"]


@triton.jit(do_not_specialize=["pairs", "sums", *_SPANS])
def sigmoid_pairs_kernel(
    x,  # (M, D)
    y,  # (N, D)
    scale,  # ()
    bias,  # ()
    owners,  # (2 pairs,) int64, the image rows of the slots first
    pair_texts,  # (pairs,) int64
    weights,  # (M + N,), not read if WEIGHED
    pair_weights,  # (pairs,), not read unless WEIGHED
    dS,  # (height, stride) out
    partial,  # (3, sums) out, a number for each program: as above, of the positives
    pairs,
    sums,
    M,
    D,
    first_row,
    last_row,
    first_col,
    last_col,
    stride,
    WEIGHED: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PAIR_D: tl.constexpr,
):
    """The positives of the workspace: u dS, and their part of loss and gradients."""
    slot = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = slot < pairs
    i = tl.load(owners + slot, mask=inside, other=-1)
    j = tl.load(pair_texts + slot, mask=inside, other=-1)
    here = (i >= first_row) & (i < last_row) & (j >= first_col) & (j < last_col)
    s = valid_scale(scale)
    product = pair_products(x, y, i, j, here, D, PAIR_D)
    if WEIGHED:
        weight = tl.load(pair_weights + slot, mask=here, other=0.0)
    else:
        weight = tl.load(weights + i, mask=here, other=0.0)
        weight += tl.load(weights + M + j, mask=here, other=0.0)
    margin = -(product * s + tl.load(bias))
    e = exp(-tl.abs(margin))
    loss, grad = weight * softplus_with(margin, e), sigmoid_with(margin, e, -weight)
    line = partial + tl.program_id(0)
    tl.store(line, tl.sum(grad * product, axis=0))
    tl.store(line + sums, tl.sum(grad, axis=0))
    tl.store(line + 2 * sums, tl.sum(loss, axis=0))
    u, _ = factor_of(s, UNIT)
    stored = (grad * u).to(dS.dtype.element_ty)
    tl.store(dS + (i - first_row) * stride + (j - first_col), stored, mask=here)


# (workspace, its rows, its columns, (3, programs) out sums) -> None: writes the positives' part.
Positives = Callable[[Tensor, Span, Span, Tensor], None]


def _scalar_sums(
    p: Problem,
    bias: Tensor,
    weights: Tensor,
    unit: Unit,
    sums: GradientSum,
    positives: Positives,
    programs: int,
    chunks: Chunks,
) -> Tensor:
    """Walk the workspace over the M x N plane; (3,) the sums, of dS S without s, of dS, the loss.

    ``programs`` that write the positives' part have a place each beside those of the tiles.
    """
    stored = p.x.dtype == torch.float32
    setting = launch.pick("stored_sigmoid_gradient" if stored else "sigmoid_gradient", p)
    rows_of = p.scale, bias, p.image_groups, p.text_groups, weights

    totals: list[Tensor] = []

    def fill(chunk: Chunk, rows: Span, cols: Span) -> None:
        tiles = setting.tiles(rows[1] - rows[0], cols[1] - cols[0])
        places, stride = tiles * setting.rows, chunk.dS.stride(0)
        partial = p.x.new_empty((3, places + programs), dtype=torch.float32)
        place = *rows, *cols, stride, partial.shape[1], setting.group
        if stored:
            stored_sigmoid_gradient_kernel[(tiles,)](
                chunk.dS, *rows_of, partial, len(p.x), *place, UNIT=unit.kind, **setting.area(),
                **setting.options(),
            )  # fmt: skip
        else:
            x, y = (
                operand(f, b, setting.depth)
                for f, b in zip(p[:2], (setting.rows, setting.cols), strict=True)
            )
            sigmoid_gradient_kernel[(tiles,)](
                x, y, *rows_of, chunk.dS, partial, len(p.x), len(p.y), p.x.shape[1], *place,
                UNIT=unit.kind, **setting.tile(), **launch.widening(p.x), **setting.options(),
            )  # fmt: skip
        positives(chunk.dS, rows, cols, partial[:, places:])
        totals.append(partial.sum(1))

    walk(p, chunks, sums, fill)
    return totals[0] if len(totals) == 1 else torch.stack(totals).sum(0)


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

    def positives(workspace: Tensor, rows: Span, cols: Span, _: Tensor) -> None:
        positive_gradients(p, given.positives, unit, workspace, rows, cols)

    sums = GradientSum(problem, needs, unit.lower if unit.early else None, chunk=chunks.shape)
    weights = given.softplus_sum
    dscale, dbias, _ = _scalar_sums(p, bias, weights, unit, sums, positives, 0, chunks)
    if needs.scale:  # S over the scale first: S times a gradient may be no float32
        dscale = dscale + torch.dot(given.positives, S / p.scale)
    scalars = torch.stack([dscale, dbias])
    unit._replace(kind=KEPT.value).lower(scalars)
    gradients = sums.finish(scalars[0].clone())  # of its own, not one of two numbers
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

    def positives(workspace: Tensor, rows: Span, cols: Span, partial: Tensor) -> None:
        sigmoid_pairs_kernel[(programs,)](
            p.x, p.y, p.scale, bias, p.owners, p.pair_texts, *w, workspace, partial,
            pairs, partial.stride(0), *p.x.shape, *rows, *cols, workspace.stride(0),
            WEIGHED=len(w.pairs) > 0, UNIT=unit.kind, **BLOCK,
        )  # fmt: skip

    rescale = unit.lower if unit.early else None
    sums = GradientSum(problem, needs, rescale, chunk=chunks.shape, dtype=p.gradient_dtype)
    totals = _scalar_sums(p, bias, w.rows, unit, sums, positives, programs, chunks)
    if unit.early:
        unit._replace(kind=KEPT.value).lower(totals)  # sums of weights times what is not dS
    gradients = sums.finish(p.scale)
    # What is not finite among the features may vanish from the loss, but not from dS S: 0 times it
    # is NaN.
    value = torch.add(totals[2], totals[0], alpha=0)
    return SigmoidLoss(value, gradients.x, gradients.y, totals[:2], gradients.logit_offsets)
