"""A tile of S or T: where a program's tile lies, its products, what is read of it from memory.

Features of 16 bits are multiplied in the tile. Their factors come by tensor descriptors where the
GPU has them (sm_90 and newer), which read what is outside as zeros, and by pointers elsewhere.
Products of float32 features are the vendor's, a chunk at a time in memory, and are loaded here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mxm_kernels.backends.interface import Problem
from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.settings import Launch


@triton.jit
def positive(s):
    """Scales; NaN where one is not positive, which the host does not wait to see."""
    return tl.where(s > 0, s, float("nan"))


@triton.jit
def valid_scale(scale):
    """The scale at a pointer, NaN where it is not positive."""
    return positive(tl.load(scale))


@triton.jit
def _places(a, first, rows, D, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Where a block of the features' rows begins: pointers; of a descriptor, its first row."""
    if isinstance(a, tl.tensor_descriptor):
        return first
    else:
        row = tl.minimum(first + tl.arange(0, BLOCK), rows - 1)  # what is outside, the last again
        return a + row.to(tl.int64)[:, None] * D + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def _slice(a, places, start, D, BLOCK_D: tl.constexpr):
    """Columns ``start`` and following of a block, (BLOCK, BLOCK_D), 0 beyond the last."""
    if isinstance(a, tl.tensor_descriptor):
        return a.load([places, start])
    else:
        inside = tl.arange(0, BLOCK_D)[None, :] < D - start
        return tl.load(places + start, mask=inside, other=0.0)


@triton.jit
def products(
    x,  # (M, D), a pointer or a descriptor of blocks (BLOCK_M, BLOCK_D)
    y,  # (N, D), a pointer or a descriptor of blocks (BLOCK_N, BLOCK_D)
    first_row,
    first_col,
    M,
    N,
    D,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Products <x_i, y_j> of the tile, (BLOCK_M, BLOCK_N) float32.

    Entries outside are of copies of the last row or column, or 0.
    """
    x_places = _places(x, first_row, M, D, BLOCK_M, BLOCK_D)
    y_places = _places(y, first_col, N, D, BLOCK_N, BLOCK_D)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_D):
        a = _slice(x, x_places, start, D, BLOCK_D)
        b = _slice(y, y_places, start, D, BLOCK_D)
        if WIDEN:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        total = tl.dot(a, b.T, total)
    return total


@triton.jit
def tile_places(first_row, first_col, stride, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Offsets of a tile in a matrix: the 64-bit one of its corner, and 32-bit ones inside it.

    64-bit offsets of every entry take twice the registers.
    """
    corner = first_row.to(tl.int64) * stride + first_col
    return corner, tl.arange(0, BLOCK_M)[:, None] * stride + tl.arange(0, BLOCK_N)[None, :]


@triton.jit
def store_tile(a, value, row, col, stride, below, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Store a tile at a row and column of a matrix whose rows have room for whole tiles.

    ``below`` (BLOCK_M,) says which of its rows there are. A mask over columns would make every
    store 2 bytes wide.
    """
    if isinstance(a, tl.tensor_descriptor):
        a.store([row, col], value.to(a.dtype))
    else:
        corner, inner = tile_places(row, col, stride, BLOCK_M, BLOCK_N)
        tl.store(a + corner + inner, value.to(a.dtype.element_ty), mask=below[:, None])


@triton.jit
def place_of(program, rows, cols, group, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Row block and column block of a program, of rows x cols.

    ``group`` row blocks are walked column by column, then the next: programs that run together read
    few rows and few columns, which stay in the L2 cache.
    """
    walked = group * tl.cdiv(cols, BLOCK_N)
    first = program // walked * group
    height = tl.minimum(tl.cdiv(rows, BLOCK_M) - first, group)
    inside = program % walked
    return first + inside % height, inside // height


def operand(matrix: Tensor, height: int, width: int) -> Tensor | TensorDescriptor:
    """A matrix as the kernels take it, in blocks: by descriptor where that can be.

    The matrix has to begin at a multiple of 16 bytes, and so has each of its rows.
    """
    if not launch.aligned(matrix) or not described(matrix.device):
        return matrix
    return TensorDescriptor.from_tensor(matrix, [height, width])


def operands(p: Problem, setting: Launch) -> tuple[Tensor | TensorDescriptor, ...]:
    """Factors of S and of T for tiles of a setting; without a teacher the student's stand in."""
    teacher_x, teacher_y, _ = teacher_arguments(p)
    made = []
    for features, block in zip(
        (p.x, p.y, teacher_x, teacher_y), (setting.rows, setting.cols) * 2, strict=True
    ):
        made.append(operand(features, block, setting.depth))
    return tuple(made)


def described(device: torch.device) -> bool:
    """Whether factors come by tensor descriptors: from sm_90 on, and in the interpreter."""
    return launch.target(device) in ("sm_90", "sm_100", "interpreter")


DEPTH = 16  # D is a multiple of it: rows begin at multiples of 16 bytes


def prepared(problem: Problem) -> Problem:
    """The problem with contiguous features whose D is a multiple of 16, none of them in float8.

    Zeros change no product; only an odd D costs the copy. A float8 teacher takes the dtype of the
    other features, which holds each of its values: its 8-bit products would need a third
    accumulator on sm_90, which sums them with 14 bits.
    """

    def pad(features: Tensor | None) -> Tensor | None:
        if features is None:
            return None
        if features.dtype != problem.x.dtype:
            features = features.to(problem.x.dtype)
        if features.shape[1] % DEPTH:
            features = torch.nn.functional.pad(features, (0, -features.shape[1] % DEPTH))
        return features.contiguous()

    x, y = pad(problem.x), pad(problem.y)
    assert x is not None and y is not None
    teacher_x, teacher_y = pad(problem.teacher_x), pad(problem.teacher_y)
    return problem._replace(x=x, y=y, teacher_x=teacher_x, teacher_y=teacher_y).contiguous()


def teacher_arguments(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher features and scale; what is not there the student's stands in for, of no effect."""
    scale = problem.scale if problem.teacher_scale is None else problem.teacher_scale
    if problem.teacher_x is None or problem.teacher_y is None:
        return problem.x, problem.y, scale
    return problem.teacher_x, problem.teacher_y, scale
