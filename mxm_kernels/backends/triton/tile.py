"""What the kernels share: the products of a tile, softplus, the layout of their arguments."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import Problem
from mxm_kernels.backends.triton.exponentials import exp


@triton.jit
def widened(a):
    """Features; float8, which come as bytes, as float16, which holds each of their values.

    By their bits, since neither sm_80 nor the interpreter knows the type: the exponent has a bias
    of 7 in float8 and of 15 in float16. NaN is lost here, and kept by the teacher's scale.
    """
    if a.dtype == tl.uint8:
        bits = a.to(tl.uint16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        a = half.to(tl.float16, bitcast=True) * 256.0
    return a


@triton.jit
def positive(s):
    """Scales; NaN where one is not positive, which the host does not wait to see."""
    return tl.where(s > 0, s, float("nan"))


@triton.jit
def valid_scale(scale):
    """The scale at a pointer, NaN where it is not positive."""
    return positive(tl.load(scale))


@triton.jit
def products(
    x,  # (M, D)
    y,  # (N, D)
    rows,  # (BLOCK_M,) image rows, each < M
    cols,  # (BLOCK_N,) text rows, each < N
    D,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    FLOAT8: tl.constexpr,
):
    """Products <x_i, y_j> of the tile, (BLOCK_M, BLOCK_N) float32.

    Bytes are float8 features: factors as they are where the target multiplies FLOAT8.
    """
    lane = tl.arange(0, BLOCK_D)
    x_tile = x + rows.to(tl.int64)[:, None] * D + lane[None, :]
    y_tile = y + cols.to(tl.int64)[:, None] * D + lane[None, :]
    total = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for start in range(0, D, BLOCK_D):
        inside = lane[None, :] < D - start
        a = tl.load(x_tile + start, mask=inside, other=0.0)
        b = tl.load(y_tile + start, mask=inside, other=0.0)
        if FLOAT8 and a.dtype == tl.uint8:
            a = a.to(tl.float8e4nv, bitcast=True)
            b = b.to(tl.float8e4nv, bitcast=True)
            # sm_90 sums these with 14 bits: into float32 after every step.
            total = tl.dot(a, tl.trans(b), total, max_num_imprecise_acc=BLOCK_D)
        else:
            a, b = widened(a), widened(b)
            if WIDEN:
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total


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


@triton.jit
def _log1p_over(e):
    """log(1 + e) / e, 0 <= e <= 1: the polynomial of ``csrc/vector.h``; log loses small terms."""
    p = e * 0.00536482641 - 0.030065801
    p = p * e + 0.0792045519
    p = p * e - 0.137538031
    p = p * e + 0.191536561
    p = p * e - 0.248571634
    p = p * e + 0.33321324
    p = p * e - 0.499996483
    return p * e + 1.0


@triton.jit
def softplus_with(x, e):
    """log(1 + exp(x)), given e = exp(-abs(x))."""
    # Not tl.maximum, which drops NaN.
    return tl.where(x < 0, 0.0, x) + e * _log1p_over(e)


@triton.jit
def sigmoid_with(x, e, weight):
    """``weight`` / (1 + exp(-x)), given e = exp(-abs(x)): never a cancellation or an overflow."""
    return tl.where(x < 0, weight * e, weight) / (1.0 + e)


@triton.jit
def softplus(x):
    """log(1 + exp(x))."""
    return softplus_with(x, exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return sigmoid_with(x, exp(-tl.abs(x)), 1.0)


DEPTH = 16  # a multiple of it lets every load be 16 bytes wide; others spilled up to 912 bytes


def padded(problem: Problem) -> Problem:
    """The problem with contiguous features whose D is a multiple of 16, a float8 teacher as bytes.

    Zeros change no product. Only an odd D costs the copy.
    """

    def pad(features: Tensor | None) -> Tensor | None:
        if features is None or features.shape[1] % DEPTH == 0:
            return features
        return torch.nn.functional.pad(features, (0, -features.shape[1] % DEPTH))

    if problem.is_float8:  # as the kernels take it
        assert problem.teacher_x is not None and problem.teacher_y is not None
        problem = problem._replace(
            teacher_x=problem.teacher_x.contiguous().view(torch.uint8),
            teacher_y=problem.teacher_y.contiguous().view(torch.uint8),
        )
    x, y = pad(problem.x), pad(problem.y)
    assert x is not None and y is not None
    teacher_x, teacher_y = pad(problem.teacher_x), pad(problem.teacher_y)
    return problem._replace(x=x, y=y, teacher_x=teacher_x, teacher_y=teacher_y).contiguous()


def teacher_arguments(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher features and scale; without a teacher the student's stand in, of no effect."""
    if problem.teacher_x is None or problem.teacher_y is None or problem.teacher_scale is None:
        return problem.x, problem.y, problem.scale
    return problem.teacher_x, problem.teacher_y, problem.teacher_scale
