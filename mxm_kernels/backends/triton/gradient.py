"""Backward: a kernel writes tiles of dS into a bounded workspace, BLAS multiplies them.

Recomputing S (and T) once and handing dS in the dtype of the features to the vendor's matrix
product costs 4 products without a teacher and 6 with one; recomputing it inside each of two
gradient kernels would cost 5 and 8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.problem import Gradients, Needs, Problem, Statistics, Upstream
from mxm_kernels.backends.tiles import GradientSum, Span
from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.exponentials import two_sided
from mxm_kernels.backends.triton.positives import positive_gradients
from mxm_kernels.backends.triton.tile import padded, place_of, products, teacher_arguments
from mxm_kernels.backends.triton.workspace import fits, shape, walk


# A ragged batch changes these numbers at every step; specialising on them would recompile.
@triton.jit(do_not_specialize=["first_row", "last_row", "first_col", "last_col", "group"])
def gradient_kernel(
    x,  # (M, D)
    y,  # (N, D)
    teacher_x,  # (M, TEACHER_D)
    teacher_y,  # (N, TEACHER_D)
    scale,  # ()
    teacher_scale,  # ()
    image_groups,  # (M,) int32
    text_groups,  # (N,) int32
    n_rows,  # (M,)
    n_cols,  # (N,)
    t_rows,  # (M,)
    t_cols,  # (N,)
    dn_rows,  # (M,)
    dn_cols,  # (N,)
    du_rows,  # (M,)
    du_cols,  # (N,)
    factor,  # () of dS as it is stored, besides the scale
    dS,  # (height, stride) out
    dscale,  # (programs, BLOCK_M) out, sums over a tile's rows of factor dS S of negatives
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
):
    """Tiles of scale factor dS, one a program, of the rows and columns from first to last.

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
    u = s * tl.load(factor)
    S = products(x, y, row, col, D, BLOCK_D, PRECISION, WIDEN, FLOAT8)  # without s
    grad = two_sided(
        S,
        s,
        tl.load(n_rows + row),
        tl.load(n_cols + col),
        tl.load(dn_rows + row) * u,
        tl.load(dn_cols + col) * u,
    )
    same = tl.load(image_groups + row)[:, None] == tl.load(text_groups + col)[None, :]
    # A row or column without a negative has n = -inf and garbage here, all of it at positives.
    grad = tl.where(same | ~inside, 0.0, grad)
    own = tl.sum(grad * S, axis=1)  # of factor dS times the logits
    tl.store(dscale + program * BLOCK_M + tl.arange(0, BLOCK_M), own)
    if TEACHER:
        T = products(teacher_x, teacher_y, row, col, TEACHER_D, BLOCK_D, PRECISION, WIDEN, FLOAT8)
        grad += two_sided(
            T,
            tl.load(teacher_scale),
            tl.load(t_rows + row),
            tl.load(t_cols + col),
            tl.load(du_rows + row) * u,
            tl.load(du_cols + col) * u,
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
def _dot(a, b, length, BLOCK: tl.constexpr):
    """Sum of a times b, in a fixed order."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < length
        total += tl.load(a + place, mask=inside, other=0.0) * tl.load(
            b + place, mask=inside, other=0.0
        )
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["tiles", "pairs", "parts", "rows", "cols"])
def scale_gradient_kernel(
    partial,  # (tiles,) sums of factor dS S over the negatives, by rows of tiles
    positives,  # (pairs,)
    dpositives,  # (parts, pairs)
    u_rows,  # (rows,)
    du_rows,  # (rows,)
    u_cols,  # (cols,)
    du_cols,  # (cols,)
    scale,  # ()
    factor,  # ()
    dscale,  # () out
    tiles,
    pairs,
    parts,
    rows,
    cols,
    TEACHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of the scale: sum dS S, of which the statistics know all but the negatives' part.

    The teacher's part is sum du u, since u is an average of S.
    """
    known = _dot(positives, dpositives, pairs, BLOCK)
    for part in range(1, parts):
        known += _dot(positives, dpositives + part * pairs, pairs, BLOCK)
    if TEACHER:
        known += _dot(u_rows, du_rows, rows, BLOCK) + _dot(u_cols, du_cols, cols, BLOCK)
    total = known * tl.load(factor) + _sum(partial, tiles, BLOCK)
    tl.store(dscale, total / tl.load(scale))


def stored_factor(
    problem: Problem, upstream: Sequence[Tensor], factor: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The factor of dS in the workspace besides the scale, and what the sums must lose of it.

    For float16 it holds a power of two: entries of dS are a mean's share of a probability, far
    below float16's smallest number (6e-8); the largest upstream gradient is raised to 2**12,
    whence 19 decades remain.
    """
    factor = torch.ones_like(problem.scale) if factor is None else factor
    if problem.x.dtype != torch.float16:
        return factor, None
    largest = torch.stack([g.abs().amax() if g.numel() else g.new_zeros(()) for g in upstream])
    room = largest.amax() * (problem.scale * factor).abs()
    unit = torch.exp2(12 - torch.ceil(torch.log2(torch.where(room > 0, room, 1.0))))
    return factor * unit, unit


def backward(
    problem: Problem,
    statistics: Statistics,
    upstream: Upstream,
    needs: Needs,
    factor: Tensor | None = None,
) -> Gradients:
    """Walk the workspace over the M x N plane: no wait for the device."""
    p, teacher = padded(problem), problem.has_teacher
    teacher_x, teacher_y, teacher_scale = teacher_arguments(p)
    device, dtype = p.x.device, p.x.dtype
    setting = launch.pick("gradient", problem)
    factor = torch.ones_like(p.scale) if factor is None else factor
    stored, unit = stored_factor(p, upstream, factor)
    alone = fits(p)
    terms = (statistics.t_rows, statistics.t_cols, upstream.u_rows, upstream.u_cols)

    def fill(workspace: Tensor, rows: Span, cols: Span) -> Tensor:
        h, w = rows[1] - rows[0], cols[1] - cols[0]
        programs = triton.cdiv(h, setting.rows) * triton.cdiv(w, setting.cols)
        partial = p.x.new_empty(programs * setting.rows, dtype=torch.float32)
        gradient_kernel[(programs,)](
            p.x, p.y, teacher_x, teacher_y, p.scale, teacher_scale,
            p.image_groups, p.text_groups,
            statistics.n_rows, statistics.n_cols, statistics.t_rows, statistics.t_cols,
            upstream.n_rows, upstream.n_cols, upstream.u_rows, upstream.u_cols,
            stored, workspace, partial,
            p.x.shape[1], teacher_x.shape[1], *rows, *cols, workspace.stride(0),
            setting.group, TEACHER=teacher, **setting.tile(),
            **launch.product_options(dtype, device), **setting.options(),
        )  # fmt: skip
        positive_gradients(p, upstream.positives, stored, workspace, rows, cols, terms)
        few = alone and len(partial) <= FEW
        partial = partial if few else partial.sum().view(1)
        return partial if unit is None else partial / unit

    sums = GradientSum(problem, needs, unit, chunk=shape(p))
    partials = walk(p, sums, fill)
    if not needs.scale:
        return sums.finish(torch.zeros_like(p.scale))
    return sums.finish(_scale_gradient(p, statistics, upstream, factor, partials))


SUM_BLOCK = 4096
FEW = 1 << 16  # sums that one program adds up; more are worth a launch


def _scale_gradient(
    p: Problem, statistics: Statistics, upstream: Upstream, factor: Tensor, partials: list[Tensor]
) -> Tensor:
    """Launch ``scale_gradient_kernel`` on the sums of all tiles."""
    tiles = partials[0] if len(partials) == 1 else torch.cat(partials)
    dscale, (parts, pairs) = torch.empty_like(p.scale), upstream.positives.shape
    scale_gradient_kernel[(1,)](
        tiles, statistics.positives, upstream.positives,
        statistics.u_rows, upstream.u_rows, statistics.u_cols, upstream.u_cols,
        p.scale, factor, dscale, tiles.shape[0], pairs, parts, p.x.shape[0], p.y.shape[0],
        TEACHER=p.has_teacher, BLOCK=SUM_BLOCK, num_warps=8,
    )  # fmt: skip
    return dscale
