"""The operators over rows and pairs: O(M + N + P) numbers in one call instead of a hundred.

A batch of 420 x 350 takes a millisecond, so there every PyTorch call counts. ``mixed_rows`` are a
loss h of the positives, in one of the forms of ``backends/pairs.py``, and the soft loss, for the
rows of one direction, together with their derivatives:

    l_i = a h_i + b (log(exp(n_i) + sum_k exp(S_ik)) - u_i)

``drawn_weights`` counts how often each positive was drawn. They compute what ``algebra.losses`` and
``algebra.selection`` define; every other loss is computed there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.problem import Draw, Form, RowProblem
from mxm_kernels.operators.statistics import library, refuse_second_derivative

library.define(
    "mixed_rows(Tensor n, Tensor S, Tensor u, Tensor weights, Tensor offsets, Tensor hard_weights, "
    "Tensor soft_weights, Tensor scale, Tensor owners, str form, float prior, float hard, "
    "float soft, SymInt hard_count, SymInt soft_count, SymInt columns, str backend) -> "
    "(Tensor losses, Tensor dn, Tensor dS, Tensor dscale)"
)
library.define(
    "mixed_rows_backward(Tensor grad, Tensor n, Tensor dn, Tensor dS, Tensor dscale, "
    "Tensor owners, Tensor soft_weights, float soft, SymInt soft_count) -> "
    "(Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "drawn_weights(Tensor seed, Tensor image_offsets, Tensor text_offsets, SymInt rounds, "
    "SymInt pairs, ScalarType dtype, str backend) -> (Tensor, Tensor)"
)


def mixed_rows(
    problem: RowProblem,
    owners: Tensor,
    form: Form,
    backend: str,
    *,
    hard: float,
    soft: float,
    counts: tuple[int, int] = (1, 1),
    columns: int = 0,
) -> Tensor:
    """(rows,) losses, differentiable in n, S, u and the scale, with a and b = hard and soft.

    Divided here by ``counts``, the numbers of rows, since torch.compile makes a program for every
    new number that is not an integer. u may be empty where b is 0; the weights get no gradient.
    ``columns`` are for "debiased".
    """
    numbers = hard, soft, *counts, columns
    return torch.ops.mxm_kernels.mixed_rows(*problem, owners, *form, *numbers, backend)[0]


def drawn_weights(draw: Draw, dtype: torch.dtype, backend: str) -> tuple[Tensor, Tensor]:
    """(P,) share of the rounds in which each positive was drawn, by its row and by its column.

    ``backends/pairs.py`` says which number of the seed draws what.
    """
    return torch.ops.mxm_kernels.drawn_weights(*draw, dtype, backend)


@torch.library.impl(library, "mixed_rows", "CompositeExplicitAutograd")
def _forward(*arguments):
    *vectors, _, name, prior, hard, soft, hard_count, soft_count, columns, backend = arguments
    # Backends read them by address, and a caller's weights may be a strided view.
    problem = RowProblem(*(v.contiguous() for v in vectors))
    with torch.no_grad():
        run = backends.load(backend).mixed_rows
        shares = hard / hard_count, soft / soft_count
        made = run(problem, Form(name, prior), *shares, columns)
    dscale = problem.n.new_empty(0) if made.dscale is None else made.dscale
    return made.losses, made.dn, made.dS, dscale


@torch.library.register_fake("mxm_kernels::mixed_rows", lib=library)
def _fake_forward(n, S, u, weights, offsets, hard_weights, soft_weights, scale, owners, form, *_):
    dscale = n.new_empty(len(n) if form == "debiased" else 0)
    return torch.empty_like(n), torch.empty_like(n), torch.empty_like(S), dscale


@torch.library.impl(library, "mixed_rows_backward", "CompositeExplicitAutograd")
def _backward(grad, n, dn, dS, dscale, owners, soft_weights, soft, soft_count):
    du = grad * (-soft / soft_count) if soft else grad.new_empty(0)
    du = du * soft_weights if soft and len(soft_weights) else du
    by_scale = torch.dot(grad, dscale) if len(dscale) else grad.new_empty(0)
    return grad * dn, grad[owners] * dS, du, by_scale


@torch.library.register_fake("mxm_kernels::mixed_rows_backward", lib=library)
def _fake_backward(grad, n, dn, dS, dscale, owners, soft_weights, soft, soft_count):
    du = grad.new_empty(len(dn) if soft else 0)
    return (
        torch.empty_like(dn),
        torch.empty_like(dS),
        du,
        grad.new_empty(() if len(dscale) else 0),
    )


@torch.library.impl(library, "drawn_weights", "CompositeExplicitAutograd")
def _drawn(*arguments):
    *draw, dtype, backend = arguments
    return backends.load(backend).drawn_weights(Draw(*draw), dtype)


@torch.library.register_fake("mxm_kernels::drawn_weights", lib=library)
def _fake_drawn(seed, image_offsets, text_offsets, rounds, pairs, dtype, backend):
    return seed.new_empty(pairs, dtype=dtype), seed.new_empty(pairs, dtype=dtype)


def _setup_context(ctx, inputs, output):
    # n only so that its graph reaches the backward operator, which refuses to be differentiated.
    _, _, _, _, _, _, soft_weights, _, owners, form, _, _, soft, _, soft_count, *_ = inputs
    ctx.save_for_backward(inputs[0], *output[1:], owners, soft_weights)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.soft, ctx.soft_count, ctx.reads_scale = soft, soft_count, form == "debiased"


def _differentiate(ctx, grad, *_):
    dn, dS, du, dscale = torch.ops.mxm_kernels.mixed_rows_backward(
        grad, *ctx.saved_tensors, ctx.soft, ctx.soft_count
    )
    of_scale = dscale if ctx.reads_scale else None
    return dn, dS, du if ctx.soft else None, *[None] * 4, of_scale, *[None] * 9


torch.library.register_autograd(
    "mxm_kernels::mixed_rows", _differentiate, setup_context=_setup_context, lib=library
)
torch.library.register_autograd(
    "mxm_kernels::mixed_rows_backward", refuse_second_derivative, lib=library
)
