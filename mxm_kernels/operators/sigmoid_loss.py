"""The sigmoid loss of a whole batch, from the features to the loss and its gradients at once.

    L = sum_ij (a_i w_ij + a'_j w'_ij) softplus(-z_ij (S_ij + b))

with z = 1 at a positive pair and -1 at another, where w = w' = 1. For a_i = 1 / (2 M), a'_j =
1 / (2 N) and M = N it is SigLIP (arXiv 2303.15343). No sum stands under a logarithm, so

    dS_ij = -z_ij (a_i w_ij + a'_j w'_ij) sigmoid(-z_ij (S_ij + b))

is known as soon as S_ij is: one walk gives loss and gradients with three products, where
``sigmoid_statistics`` and its backward take four. Backward multiplies them by the upstream
gradient. What they hold until then is a gradient for every feature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.problem import Needs, Problem, SigmoidLoss, SigmoidWeights
from mxm_kernels.fold_tables import FoldTables
from mxm_kernels.operators.statistics import (
    TABLES,
    library,
    plain,
    refuse_second_derivative,
    vectors,
)

_INPUTS = f"Tensor x, Tensor y, Tensor scale, Tensor bias, {TABLES}"
_PROBLEM, _WEIGHTS = _INPUTS.count("Tensor"), len(SigmoidWeights._fields)

library.define(
    f"sigmoid_loss({_INPUTS}, Tensor row_weights, Tensor col_weights, Tensor row_pair_weights, "
    "Tensor col_pair_weights, bool[] needs, str backend) -> "
    "(Tensor loss, Tensor dx, Tensor dy, Tensor dscalars)"
)
library.define(
    "sigmoid_loss_backward(Tensor grad, Tensor x, Tensor y, Tensor scale, Tensor bias, Tensor dx, "
    "Tensor dy, Tensor dscalars, str backend) -> (Tensor, Tensor, Tensor)"
)


def sigmoid_loss(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    tables: FoldTables,
    weights: SigmoidWeights,
    backend: str,
) -> Tensor:
    """() the loss of x (M, D) and y (N, D) at a 0-d scale and bias; the weights get no gradient.

    The gradients that are wanted now are computed now. The loss is NaN where a feature is not
    finite, the loss and its gradients where the scale is not positive.
    """
    needs = [v.requires_grad and torch.is_grad_enabled() for v in (x, y, scale, bias)]
    operator = torch.ops.mxm_kernels.sigmoid_loss
    return operator(x, y, scale, bias, *vectors(tables), *weights, needs, backend)[0]


def _problem(x: Tensor, y: Tensor, scale: Tensor, *tables: Tensor) -> Problem:
    return Problem(x, y, None, None, scale, None, *tables)


@torch.library.impl(library, "sigmoid_loss", "CompositeExplicitAutograd")
def _forward(*arguments):
    x, y, scale, bias, *rest = arguments[:-2]
    tables, weights = rest[:-_WEIGHTS], SigmoidWeights(*(w.contiguous() for w in rest[-_WEIGHTS:]))
    problem = _problem(x, y, scale, *tables)
    with plain(problem):
        run = backends.load(arguments[-1]).sigmoid_loss
        return tuple(run(problem, bias, weights, Needs(*arguments[-2])))


@torch.library.register_fake("mxm_kernels::sigmoid_loss", lib=library)
def _fake_forward(*arguments):
    x, y, scale, _, *rest = arguments[:-2]
    problem, needs = _problem(x, y, scale, *rest[:-_WEIGHTS]), Needs(*arguments[-2])
    dtype = problem.gradient_dtype
    return tuple(
        SigmoidLoss(
            scale.new_empty(()),
            x.new_empty(x.shape if needs.x else 0, dtype=dtype),
            y.new_empty(y.shape if needs.y else 0, dtype=dtype),
            scale.new_empty(2),
        )
    )


@torch.library.impl(library, "sigmoid_loss_backward", "CompositeExplicitAutograd")
def _backward(grad, x, y, scale, bias, dx, dy, dscalars, backend):
    with torch.no_grad():
        return backends.load(backend).times(grad, dx, dy, dscalars, x.dtype)


@torch.library.register_fake("mxm_kernels::sigmoid_loss_backward", lib=library)
def _fake_backward(grad, x, y, scale, bias, dx, dy, dscalars, backend):
    return *(d.new_empty(d.shape, dtype=x.dtype) for d in (dx, dy)), torch.empty_like(dscalars)


def _setup_context(ctx, inputs, output):
    # The inputs only so that their graph reaches the backward, which refuses to be differentiated.
    ctx.save_for_backward(*inputs[:4], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.backend = inputs[-1]


def _differentiate(ctx, grad, *_):
    nothing = [None] * (_PROBLEM - 4 + _WEIGHTS + 2)
    if grad is None:  # only of the outputs that have none
        return *[None] * 4, *nothing
    dx, dy, dscalars = torch.ops.mxm_kernels.sigmoid_loss_backward(
        grad, *ctx.saved_tensors, ctx.backend
    )
    gradients = dx, dy, dscalars[0], dscalars[1]
    wanted = (g if need else None for g, need in zip(gradients, ctx.needs_input_grad, strict=False))
    return *wanted, *nothing


torch.library.register_autograd(
    "mxm_kernels::sigmoid_loss", _differentiate, setup_context=_setup_context, lib=library
)
torch.library.register_autograd(
    "mxm_kernels::sigmoid_loss_backward", refuse_second_derivative, lib=library
)
