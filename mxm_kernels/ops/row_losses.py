"""The operator of the fused formulas: losses of the list of rows and their derivatives.

    losses_r = hard h_r l_r + soft q_r (logaddexp(n_r, logsumexp_k S_rk) - u_r)

with l_r a formula of ``core.formulas`` that the backend has in a kernel, h and q the weights of
the rows. It computes what the formulas compute in PyTorch, in one kernel for a dozen, and one
more in backward. ``core.row_losses`` decides where it may stand for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.interface import FusedFormula, RowLosses, RowProblem
from mxm_kernels.ops.library import (
    is_differentiated_once,
    library,
    register_autograd,
    schema,
    wanted,
)

_ROWS = schema(*RowProblem._fields)
library.define(
    f"row_losses({_ROWS}, str formula, float constant, float hard, float soft, str backend) -> "
    f"({schema(*RowLosses._fields)})"
)
library.define(
    f"row_losses_backward(Tensor grad, {schema(*RowLosses._fields[1:])}, {_ROWS}, str formula, "
    "float constant, float hard, float soft, str backend) -> (Tensor, Tensor, Tensor, Tensor)"
)
_COUNT = len(RowProblem._fields)


def row_losses(rows: RowProblem, formula: FusedFormula, backend: str) -> Tensor:
    """(R,) losses, differentiable in the first four fields of ``rows``, its weights are not."""
    return torch.ops.mxm_kernels.row_losses(*rows, *formula, backend)[0]


@torch.library.impl(library, "row_losses", "CompositeExplicitAutograd")
def _forward(*arguments):
    # Backends read them by address, and a caller's weights may be a strided view.
    rows = RowProblem(*[v.contiguous() for v in arguments[:_COUNT]])
    with torch.no_grad():
        return tuple(
            backends.load(arguments[-1]).row_losses(rows, FusedFormula(*arguments[_COUNT:-1]))
        )


@torch.library.register_fake("mxm_kernels::row_losses", lib=library)
def _fake_forward(*arguments):
    return tuple(RowProblem(*arguments[:_COUNT]).allocate())


@torch.library.impl(library, "row_losses_backward", "CompositeExplicitAutograd")
def _backward(grad, d_neg_lse, d_positives, d_parameter, *rest):
    rows, formula = RowProblem(*rest[:_COUNT]), FusedFormula(*rest[_COUNT:-1])
    made = RowLosses(grad, d_neg_lse, d_positives, d_parameter)
    with torch.no_grad():
        return tuple(backends.load(rest[-1]).row_losses_backward(grad, made, rows, formula))


@torch.library.register_fake("mxm_kernels::row_losses_backward", lib=library)
def _fake_backward(grad, d_neg_lse, d_positives, d_parameter, *rest):
    return tuple(RowProblem(*rest[:_COUNT]).allocate_gradients())


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*output[1:], *inputs[:_COUNT])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.formula = inputs[_COUNT:]  # and the backend


def _differentiate(ctx, grad, *_):
    du, dn, dS, d_parameter = torch.ops.mxm_kernels.row_losses_backward(
        grad, *ctx.saved_tensors, *ctx.formula
    )
    gradients = wanted((dn, dS, du, d_parameter), ctx.needs_input_grad[:4])
    return *gradients, *[None] * (_COUNT - 4 + 5)


register_autograd("row_losses", _differentiate, _setup_context)
is_differentiated_once("mxm_kernels::row_losses_backward")
