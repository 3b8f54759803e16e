"""Backward: a kernel writes tiles of dS into a bounded workspace, BLAS multiplies them.

Recomputing S (and T) once and handing dS in the dtype of the features to the vendor's matrix
product costs 4 products without a teacher and 6 with one; recomputing it inside each of two
gradient kernels would cost 5 and 8.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

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
from mxm_kernels.backends.triton.exponentials import two_sided
from mxm_kernels.backends.triton.positives import positive_gradients
from mxm_kernels.backends.triton.tile import padded, place_of, products, teacher_arguments
from mxm_kernels.backends.triton.unit import (
    Unit,
    exponent_of,
    factor_of,
    lower_block,
    power_of_two,
    raise_vectors,
    times_power,
    unit_for,
)
from mxm_kernels.backends.triton.workspace import shape, walk


# A ragged batch changes these numbers at every step; specialising on them would recompile.
@triton.jit(do_not_specialize=["M", "first_row", "last_row", "first_col", "last_col", "group"])
def gradient_kernel(
    x,  # (M, D)
    y,  # (N, D)
    teacher_x,  # (M, TEACHER_D)
    teacher_y,  # (N, TEACHER_D)
    scale,  # ()
    teacher_scale,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    n,  # (M + N,)
    t,  # (M + N,)
    dn,  # (M + N,)
    du,  # (M + N,)
    dS,  # (height, stride) out
    dscale,  # (programs, BLOCK_M) out, sums over a tile's rows of u dS S of negatives
    M,
    D,
    TEACHER_D,
    first_row,
    last_row,
    first_col,
    last_col,
    stride,
    group,
    TEACHER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    FLOAT8: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Tiles of u dS, one a program, of the rows and columns from first to last.

    u is the scale, or what ``unit`` makes of it.

    The positives' own gradient is missing here; ``positives`` overwrites their entries.
    """
    program = tl.program_id(0)
    height, width = last_row - first_row, last_col - first_col
    row_block, col_block = place_of(program, height, width, group, BLOCK_M, BLOCK_N)
    rows = first_row + row_block * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = first_col + col_block * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (rows < last_row)[:, None] & (cols < last_col)[None, :]
    row, col = tl.minimum(rows, last_row - 1), tl.minimum(cols, last_col - 1)

    s = tl.load(scale)
    u, _ = factor_of(s, UNIT)
    S = products(x, y, row, col, D, BLOCK_D, PRECISION, WIDEN, FLOAT8)  # without s
    grad = two_sided(
        S,
        s,
        tl.load(n + row),
        tl.load(n + M + col),
        tl.load(dn + row) * u,
        tl.load(dn + M + col) * u,
    )
    same = tl.load(image_groups + row)[:, None] == tl.load(text_groups + col)[None, :]
    # A row or column without a negative has n = -inf and garbage here, all of it at positives.
    grad = tl.where(same | ~inside, 0.0, grad)
    by_row = tl.sum(grad * S, axis=1)  # of u dS times the logits
    tl.store(dscale + program * BLOCK_M + tl.arange(0, BLOCK_M), by_row)
    if TEACHER:
        T = products(teacher_x, teacher_y, row, col, TEACHER_D, BLOCK_D, PRECISION, WIDEN, FLOAT8)
        grad += two_sided(
            T,
            tl.load(teacher_scale),
            tl.load(t + row),
            tl.load(t + M + col),
            tl.load(du + row) * u,
            tl.load(du + M + col) * u,
        )
    # 64-bit start of the tile, 32-bit places inside it: half the registers of 64-bit places.
    tile = dS + (row_block * BLOCK_M).to(tl.int64) * stride + col_block * BLOCK_N
    place = tl.arange(0, BLOCK_M)[:, None] * stride + tl.arange(0, BLOCK_N)[None, :]
    # No mask over columns, which would make every store 2 bytes wide: rows of dS have room.
    tl.store(tile + place, grad.to(dS.dtype.element_ty), mask=(rows < last_row)[:, None])


@triton.jit
def _sum(a, length, BLOCK: tl.constexpr):
    """Sum of a, in a fixed order."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        total += tl.load(a + place, mask=place < length, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def _dot(a, b, length, factor, BLOCK: tl.constexpr):
    """Sum of factor a times b, in a fixed order."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < length
        total += (tl.load(a + place, mask=inside, other=0.0) * factor) * tl.load(
            b + place, mask=inside, other=0.0
        )
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["tiles", "positives_length", "rows", "x_length", "y_length"])
def scale_gradient_kernel(
    partial,  # (tiles,) sums of u dS S over the negatives, by rows of tiles
    positives,  # (positives_length,) S of every positive pair, twice
    dpositives,  # (positives_length,)
    u,  # (rows,) the teacher's averages
    du,  # (rows,)
    scale,  # ()
    lowered,  # () int32, not read unless LOWERED
    dscale,  # () out
    dx,  # (x_length,) in and out
    dy,  # (y_length,) in and out
    tiles,
    positives_length,
    rows,
    x_length,
    y_length,
    TEACHER: tl.constexpr,
    UNIT: tl.constexpr,
    LOWERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The first program: the gradient of the scale; the others take the unit out of dx and dy.

    The gradient of the scale is sum dS S / s over three parts. The tiles have summed the negatives
    (``partial``). The positives and their dS are vectors. The teacher's part is sum du u, since u
    is an average of S.
    """
    s = tl.load(scale)
    factor, R = factor_of(s, UNIT)
    if LOWERED:
        R += tl.load(lowered)
    block = tl.program_id(0) - 1
    x_blocks = tl.cdiv(x_length, BLOCK)
    if block < 0:
        # By the exponent of the scale first: the product of S and a gradient may be no float32.
        of_s = exponent_of(s)
        down = power_of_two(-of_s)
        known = _dot(positives, dpositives, positives_length, down, BLOCK)
        if TEACHER:
            known += _dot(u, du, rows, down, BLOCK)
        mantissa = s * down
        total = known / mantissa * factor + _sum(partial, tiles, BLOCK)
        tl.store(dscale, times_power(total / mantissa, R - of_s))
    elif R != 0:
        if block < x_blocks:
            lower_block(dx, block, x_length, R, BLOCK)
        else:
            lower_block(dy, block - x_blocks, y_length, R, BLOCK)


def backward(
    problem: Problem, statistics: Statistics, upstream: Upstream, needs: Needs, memory: Memory
) -> Gradients:
    """Walk the workspace over the M x N plane: no wait for the device."""
    p, teacher = padded(problem), problem.has_teacher
    teacher_x, teacher_y, teacher_scale = teacher_arguments(p)
    device, dtype = p.x.device, p.x.dtype
    setting = launch.pick("gradient", problem)
    # Upstream gradients may be of any size. The greatest is raised to 1, for float16 to 2**10:
    # entries of dS are shares of a probability, far below float16's smallest number (6e-8).
    raised, lowered = raise_vectors(upstream, p.x.dtype)
    upstream, unit = Upstream(*raised), unit_for(p.x, p.scale, lowered)
    sums = GradientSum(problem, needs, unit.lower if unit.early else None, chunk=shape(p))
    alone = sums.chunk == (p.x.shape[0], p.y.shape[0])

    def fill(workspace: Tensor, rows: Span, cols: Span) -> Tensor:
        h, w = rows[1] - rows[0], cols[1] - cols[0]
        programs = triton.cdiv(h, setting.rows) * triton.cdiv(w, setting.cols)
        partial = p.x.new_empty(programs * setting.rows, dtype=torch.float32)
        gradient_kernel[(programs,)](
            p.x, p.y, teacher_x, teacher_y, p.scale, teacher_scale,
            p.image_groups, p.text_groups,
            statistics.neg_lse, statistics.teacher_lse, upstream.neg_lse, upstream.teacher_mean,
            workspace, partial, p.x.shape[0], p.x.shape[1], teacher_x.shape[1], *rows, *cols,
            workspace.stride(0), setting.group, TEACHER=teacher, UNIT=unit.kind, **setting.tile(),
            **launch.product_options(dtype, device), **setting.options(),
        )  # fmt: skip
        terms = statistics.teacher_lse, upstream.teacher_mean
        positive_gradients(p, upstream.positives, unit, workspace, rows, cols, terms)
        if not needs.scale:
            return partial[:0]
        few = alone and len(partial) <= FEW
        return partial if few else partial.sum().view(1)

    partials = walk(p, sums, fill)
    made = sums.finish(torch.empty_like(p.scale))
    late = [] if unit.early else [made.x, made.y]
    if needs.scale or late:
        made = made._replace(scale=_scale_gradient(p, statistics, upstream, unit, partials, late))
    return made


SUM_BLOCK = 4096
FEW = 1 << 16  # sums that one program adds up; more are worth a launch


def _scale_gradient(
    p: Problem,
    statistics: Statistics,
    upstream: Upstream,
    unit: Unit,
    partials: list[Tensor],
    late: list[Tensor],
) -> Tensor:
    """The gradient of the scale; the unit goes from the gradients that still carry it, ``late``."""
    tiles = partials[0] if len(partials) == 1 else torch.cat(partials)
    dscale = torch.empty_like(p.scale)
    dx, dy = late or (dscale[None][:0],) * 2
    programs = 1 + triton.cdiv(dx.numel(), SUM_BLOCK) + triton.cdiv(dy.numel(), SUM_BLOCK)
    scale_gradient_kernel[(programs,)](
        tiles, statistics.positives, upstream.positives,
        statistics.teacher_mean, upstream.teacher_mean, *unit.arguments(), dscale, dx, dy,
        tiles.shape[0], 2 * p.pairs, len(upstream.teacher_mean), dx.numel(), dy.numel(),
        TEACHER=p.has_teacher, **unit.constants(), BLOCK=SUM_BLOCK, num_warps=8,
    )  # fmt: skip
    return dscale
