"""The operator of sigmoid losses: like ``statistics``, with softplus instead of log-sum-exp.

    (x, y, s, b, folds) -> (r, r', S_pos)

    r_i = sum_{j not in Pos(i)} softplus(S_ij + b)         r'_j the same down column j

SigLIP (arXiv 2303.15343) is the mean of -log sigmoid(z_ij (S_ij + b)), z = 1 for a positive
pair and -1 for another: the negatives' part is r, the positives' is softplus(-(S_pos + b)).

    dS_ij = (dr_i + dr'_j) sigmoid(S_ij + b)    where (i, j) is a negative pair
            dS_pos                              where it is a positive pair

    dx = s dS y          dy = s dS^T x          ds = sum_ij dS_ij S_ij / s

    db = sum of dS over the negatives; what a loss does with S_pos + b is outside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.problem import Needs, Problem, SigmoidGradients, SigmoidStatistics
from mxm_kernels.fold_tables import FoldTables, RowTables
from mxm_kernels.operators.statistics import (
    TABLES,
    library,
    plain,
    poison_of,
    refuse_second_derivative,
    vectors,
)

_INPUTS = f"Tensor x, Tensor y, Tensor scale, Tensor bias, {TABLES}"
_COUNT = _INPUTS.count("Tensor")

library.define(
    f"sigmoid_statistics({_INPUTS}, str backend) -> "
    "(Tensor r_rows, Tensor r_cols, Tensor positives)"
)
library.define(
    f"sigmoid_statistics_backward({_INPUTS}, Tensor positives, Tensor dr_rows, Tensor dr_cols, "
    "Tensor dpositives, bool[] needs, str backend) -> (Tensor, Tensor, Tensor, Tensor)"
)


def sigmoid_statistics(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    tables: FoldTables | RowTables,
    backend: str,
) -> SigmoidStatistics:
    """Run the operator: x (M, D), y (N, D), 0-d scale and bias.

    Returns the statistics in float32 (float64 for float64 features), differentiable in x, y,
    scale and bias. ``positives`` are S without the bias.
    """
    if not len(x) or not len(y):  # a shard of a batch may lack a modality
        return SigmoidStatistics(*(scale.new_zeros(n) for n in (len(x), len(y), 0)))
    return SigmoidStatistics(
        *torch.ops.mxm_kernels.sigmoid_statistics(x, y, scale, bias, *vectors(tables), backend)
    )


def sigmoid_statistics_backward(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    tables: FoldTables | RowTables,
    positives: Tensor,
    upstream: SigmoidStatistics,
    needs: list[bool],
    backend: str,
) -> SigmoidGradients:
    """The gradients of :func:`sigmoid_statistics`, for who differentiates around it."""
    if not len(x) or not len(y):
        return SigmoidGradients(*(torch.zeros_like(t) for t in (x, y, scale, bias)))
    outputs = torch.ops.mxm_kernels.sigmoid_statistics_backward(
        x, y, scale, bias, *vectors(tables), positives, *upstream, needs, backend
    )
    return SigmoidGradients(*outputs)


def _problem(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, *tables: Tensor
) -> tuple[Problem, Tensor]:
    return Problem(x, y, None, None, scale, None, *tables), bias


@torch.library.impl(library, "sigmoid_statistics", "CompositeExplicitAutograd")
def _forward(*arguments):
    problem, bias = _problem(*arguments[:_COUNT])
    with plain(problem):
        result = backends.load(arguments[-1]).sigmoid_forward(problem, bias)
        poison = poison_of(problem)
        return result.r_rows + poison, result.r_cols + poison, result.positives


@torch.library.register_fake("mxm_kernels::sigmoid_statistics", lib=library)
def _fake_forward(*arguments):
    problem, _ = _problem(*arguments[:_COUNT])
    return tuple(problem.room(diagnostics=False)[:3])


@torch.library.impl(library, "sigmoid_statistics_backward", "CompositeExplicitAutograd")
def _backward(*arguments):
    problem, bias = _problem(*arguments[:_COUNT])
    positives, *grads, needs, backend = arguments[_COUNT:]
    upstream = SigmoidStatistics(*(g.contiguous() for g in grads))
    with plain(problem):
        run = backends.load(backend).sigmoid_backward
        return tuple(run(problem, bias, positives, upstream, Needs(*needs)))


@torch.library.register_fake("mxm_kernels::sigmoid_statistics_backward", lib=library)
def _fake_backward(*arguments):
    x, y, scale, bias = arguments[:4]
    needs = Needs(*arguments[-2])
    return tuple(
        SigmoidGradients(
            x.new_empty(x.shape if needs.x else 0),
            y.new_empty(y.shape if needs.y else 0),
            scale.new_empty(()),
            bias.new_empty(()),
        )
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:_COUNT], output[2])
    ctx.backend = inputs[_COUNT]


def _differentiate(ctx, *grads):
    needs = list(ctx.needs_input_grad[:4])
    gradients = torch.ops.mxm_kernels.sigmoid_statistics_backward(
        *ctx.saved_tensors, *grads, needs, ctx.backend
    )
    wanted = (g if need else None for g, need in zip(gradients, needs, strict=True))
    return (*wanted, *[None] * (_COUNT - 4), None)


torch.library.register_autograd(
    "mxm_kernels::sigmoid_statistics", _differentiate, setup_context=_setup_context, lib=library
)
torch.library.register_autograd(
    "mxm_kernels::sigmoid_statistics_backward", refuse_second_derivative, lib=library
)
