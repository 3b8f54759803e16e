"""The sigmoid loss of a whole batch, from the features to the loss and its gradients at once.

    L = sum_ij w_ij softplus(-z_ij (S_ij + b))

with z = 1 and weights w_ij of their own at positive pairs, z = -1 and w_ij = a_i + a_j at the
others. For a_i = 1 / (2 M), a_j = 1 / (2 N) and M = N it is SigLIP (arXiv 2303.15343). No sum
stands under a logarithm, so

    dS_ij = -z_ij w_ij sigmoid(-z_ij (S_ij + b))

is known as soon as S_ij is: one walk gives loss and gradients with three products, where
``sigmoid_statistics`` and its backward take four. Backward multiplies them by the upstream
gradient. What they hold until then is a gradient for every feature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.interface import (
    Memory,
    Needs,
    PairRules,
    SigmoidLoss,
    SigmoidWeights,
)
from mxm_kernels.folds.tables import FoldTables
from mxm_kernels.memory import budget_of
from mxm_kernels.ops.library import (
    NO_RULES,
    is_differentiated_once,
    library,
    register_autograd,
    schema,
    within,
)
from mxm_kernels.ops.sigmoid_statistics import (
    INPUT_COUNT,
    INPUTS,
    LEARNED,
    problem_of,
    sigmoid_inputs,
)

_WEIGHTS = len(SigmoidWeights._fields)
library.define(
    f"sigmoid_loss({INPUTS}, Tensor row_weights, Tensor pair_weights, bool[] needs, str backend, "
    f"int budget) -> ({schema(*SigmoidLoss._fields)})"
)
library.define(
    f"sigmoid_loss_backward(Tensor grad, {schema('x', 'y', 'scale', 'bias')}, "
    f"{schema(*SigmoidLoss._fields)}, str backend) -> (Tensor, Tensor, Tensor, Tensor)"
)


def sigmoid_loss(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    tables: FoldTables,
    weights: SigmoidWeights,
    backend: str,
    rules: PairRules = NO_RULES,
) -> Tensor:
    """() the loss of x (M, D) and y (N, D) at a 0-d scale and bias; the weights get no gradient.

    The gradients that are wanted now are computed now. Loss and gradients are NaN where a feature
    is not finite, or the scale not positive.
    """
    learned = x, y, scale, bias, rules.logit_offsets
    grad = torch.is_grad_enabled()
    needs = [v is not None and v.requires_grad and grad for v in learned]
    inputs = *sigmoid_inputs(x, y, scale, bias, tables, rules), *weights
    return torch.ops.mxm_kernels.sigmoid_loss(*inputs, needs, backend, budget_of(x.device))[0]


@torch.library.impl(library, "sigmoid_loss", "CompositeExplicitAutograd")
def _forward(*arguments):
    *inputs, needs, backend, budget = arguments
    problem, bias = problem_of(*inputs[:INPUT_COUNT])
    weights = SigmoidWeights(*(w.contiguous() for w in inputs[INPUT_COUNT:]))
    memory, run = Memory(budget), backends.load(backend).sigmoid_loss
    with within(memory, problem.x):
        return tuple(run(problem, bias, weights, Needs(*needs), memory))


@torch.library.register_fake("mxm_kernels::sigmoid_loss", lib=library)
def _fake_forward(*arguments):
    (problem, _), needs = problem_of(*arguments[:INPUT_COUNT]), Needs(*arguments[-3])
    (x, y), scale, dtype = problem[:2], problem.scale, problem.gradient_dtype
    return tuple(
        SigmoidLoss(
            scale.new_empty(()),
            x.new_empty(x.shape if needs.x else 0, dtype=dtype),
            y.new_empty(y.shape if needs.y else 0, dtype=dtype),
            scale.new_empty(2),
            scale.new_empty(x.shape[0] + y.shape[0] if needs.logit_offsets else 0),
        )
    )


@torch.library.impl(library, "sigmoid_loss_backward", "CompositeExplicitAutograd")
def _backward(grad, x, y, scale, bias, *arguments):
    *fields, backend = arguments
    made = SigmoidLoss(*fields)
    with torch.no_grad():
        return backends.load(backend).sigmoid_loss_backward(grad, made, x.dtype)


@torch.library.register_fake("mxm_kernels::sigmoid_loss_backward", lib=library)
def _fake_backward(grad, x, y, scale, bias, loss, dx, dy, dscalars, doffsets, backend):
    features = [d.new_empty(d.shape, dtype=x.dtype) for d in (dx, dy)]
    return *features, torch.empty_like(dscalars), torch.empty_like(doffsets)


def _setup_context(ctx, inputs, output):
    # The inputs only so that their graph reaches the backward, which refuses to be differentiated.
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.backend = inputs[-2]


def _differentiate(ctx, grad, *_):
    made: list[Tensor | None] = [None] * (INPUT_COUNT + _WEIGHTS + 3)
    if grad is None:  # only of the outputs that have none
        return tuple(made)
    dx, dy, dscalars, doffsets = torch.ops.mxm_kernels.sigmoid_loss_backward(
        grad, *ctx.saved_tensors, ctx.backend
    )
    gradients = dx, dy, dscalars[0], dscalars[1], doffsets
    for k, gradient in zip(LEARNED, gradients, strict=True):
        made[k] = gradient if ctx.needs_input_grad[k] else None
    return tuple(made)


register_autograd("sigmoid_loss", _differentiate, _setup_context)
is_differentiated_once("mxm_kernels::sigmoid_loss_backward")
