"""What the kernels share: the products of a tile, softplus, the layout of their arguments."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.problem import Problem
from mxm_kernels.backends.triton.exponentials import exp


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
):
    """Products <x_i, y_j> of the tile, (BLOCK_M, BLOCK_N) float32."""
    lane = tl.arange(0, BLOCK_D)
    x_tile = x + rows.to(tl.int64)[:, None] * D + lane[None, :]
    y_tile = y + cols.to(tl.int64)[:, None] * D + lane[None, :]
    total = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for start in range(0, D, BLOCK_D):
        inside = lane[None, :] < D - start
        a = tl.load(x_tile + start, mask=inside, other=0.0)
        b = tl.load(y_tile + start, mask=inside, other=0.0)
        if WIDEN:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total


@triton.jit
def softplus(x):
    """log(1 + exp(x)); the polynomial of ``csrc/vector.h``, for log loses the small terms."""
    e = exp(-tl.abs(x))
    p = e * 0.00536482641 - 0.030065801
    p = p * e + 0.0792045519
    p = p * e - 0.137538031
    p = p * e + 0.191536561
    p = p * e - 0.248571634
    p = p * e + 0.33321324
    p = p * e - 0.499996483
    p = p * e + 1.0
    # Not tl.maximum, which drops NaN.
    return tl.where(x < 0, 0.0, x) + e * p


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), without cancellation or overflow on either side."""
    e = exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


DEPTH = 16  # a multiple of it lets every load be 16 bytes wide; others spilled up to 912 bytes


def padded(problem: Problem) -> Problem:
    """The problem with contiguous features whose D is a multiple of 16.

    Zeros change no product. Only an odd D costs the copy.
    """

    def pad(features: Tensor | None) -> Tensor | None:
        if features is None or features.shape[1] % DEPTH == 0:
            return features
        return torch.nn.functional.pad(features, (0, -features.shape[1] % DEPTH))

    x, y = pad(problem.x), pad(problem.y)
    assert x is not None and y is not None
    teacher_x, teacher_y = pad(problem.teacher_x), pad(problem.teacher_y)
    return problem._replace(x=x, y=y, teacher_x=teacher_x, teacher_y=teacher_y).contiguous()


def teacher_arguments(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher features and scale; without a teacher the student's stand in, of no effect."""
    if problem.teacher_x is None or problem.teacher_y is None or problem.teacher_scale is None:
        return problem.x, problem.y, problem.scale
    return problem.teacher_x, problem.teacher_y, problem.teacher_scale
