"""From features to the mean of both directions: the statistics, the losses of the rows, their sum.

It gives what ``statistics`` and ``mixed_rows`` give one after the other, for a batch that needs
nothing else of the statistics. Forward already knows the derivatives by the statistics, so backward
is one call; at 420 x 350 on a GPU a step is 12 launches (``python -m bench.calls``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.problem import Form, Needs, Problem, Shares, Sides, Upstream
from mxm_kernels.operators.statistics import (
    INPUTS,
    STATISTICS,
    UPSTREAM,
    fake_gradients,
    fake_statistics,
    gradients_of_inputs,
    library,
    of_saved,
    plain,
    refuse_second_derivative,
    saved_of,
)

_SIDES = (
    "Tensor row_weights, Tensor col_weights, Tensor text_offsets, Tensor text_slots, "
    "Tensor slot_places, Tensor row_hard_weights, Tensor row_soft_weights, "
    "Tensor col_hard_weights, Tensor col_soft_weights"
)
library.define(
    f"mixed_loss({INPUTS}, {_SIDES}, str form, float prior, float[] shares, SymInt[] counts, "
    f"str backend) -> (Tensor loss, {STATISTICS}, Tensor kept, {UPSTREAM}, Tensor dscale)"
)
library.define(
    f"mixed_loss_backward(Tensor grad, {INPUTS}, {STATISTICS}, Tensor kept, {UPSTREAM}, "
    "Tensor dscale, bool[] needs, str backend) -> (Tensor, Tensor, Tensor)"
)
_PROBLEM, _SIDE = len(Problem._fields), len(Sides._fields)
_UPSTREAM = len(Upstream._fields)


def mixed_loss(
    problem: Problem,
    sides: Sides,
    form: Form,
    shares: Shares,
    counts: tuple[int, int, int, int],
    backend: str,
) -> Tensor:
    """() sum over both directions of ``shares`` over ``counts`` times the losses of the rows.

    Divided here by the numbers of rows, since torch.compile makes a program for every new
    number that is not an integer. The weights get no gradient. The loss and its gradients are NaN
    where a feature is not finite or a scale not positive.
    """
    operator = torch.ops.mxm_kernels.mixed_loss
    return operator(*problem, *sides, *form, shares, counts, backend)[0]


@torch.library.impl(library, "mixed_loss", "CompositeExplicitAutograd")
def _forward(*arguments):
    *tensors, form, prior, shares, counts, name = arguments
    problem = Problem(*tensors[:_PROBLEM])
    # Backends read the weights of the pairs by address, and a caller's may be a strided view.
    sides = Sides(*(vector.contiguous() for vector in tensors[_PROBLEM:]))
    backend = backends.load(name)
    with plain(problem):
        statistics = backend.forward(problem)
        means = Shares(*(share / count for share, count in zip(shares, counts, strict=True)))
        made = backend.mixed_loss(problem, statistics, sides, Form(form, prior), means)
    loss, upstream, dscale = made
    dscale = loss.new_empty(0) if dscale is None else dscale
    return loss, *saved_of(statistics), *upstream, dscale


@torch.library.register_fake("mxm_kernels::mixed_loss", lib=library)
def _fake_forward(*arguments):
    *tensors, form, _, _, _, name = arguments
    problem = Problem(*tensors[:_PROBLEM])
    s = fake_statistics(problem, name)
    parts = s.positives.new_empty((backends.load(name).pair_parts, s.positives.shape[0]))
    upstream = s.n_rows, s.n_cols, parts, s.u_rows, s.u_cols
    loss = s.n_rows.new_empty(())
    dscale = loss.new_empty(() if form == "debiased" else 0)
    return loss, *saved_of(s), *(torch.empty_like(v) for v in upstream), dscale


@torch.library.impl(library, "mixed_loss_backward", "CompositeExplicitAutograd")
def _backward(grad, *arguments):
    *tensors, dscale, needs, name = arguments
    problem = Problem(*tensors[:_PROBLEM])
    statistics, upstream = of_saved(tensors[_PROBLEM:-_UPSTREAM]), Upstream(*tensors[-_UPSTREAM:])
    with plain(problem):
        backward = backends.load(name).backward
        dx, dy, ds = backward(problem, statistics, upstream, Needs(*needs), grad)
        if dscale.ndim == 0:
            ds = torch.addcmul(ds, grad, dscale)
    return dx, dy, ds


@torch.library.register_fake("mxm_kernels::mixed_loss_backward", lib=library)
def _fake_backward(grad, *arguments):
    return fake_gradients(Problem(*arguments[:_PROBLEM]), Needs(*arguments[-2]))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:_PROBLEM], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.backend = inputs[-1]


def _differentiate(ctx, grad, *_):
    needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[4]]
    gradients = torch.ops.mxm_kernels.mixed_loss_backward(
        grad, *ctx.saved_tensors, needs, ctx.backend
    )
    return *gradients_of_inputs(gradients, needs), *[None] * (_SIDE + 5)


torch.library.register_autograd(
    "mxm_kernels::mixed_loss", _differentiate, setup_context=_setup_context, lib=library
)
torch.library.register_autograd(
    "mxm_kernels::mixed_loss_backward", refuse_second_derivative, lib=library
)
