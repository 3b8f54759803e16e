"""The operator of the fused formulas: losses of the list of rows and their derivatives.

    losses_r = hard h_r (l_r + e d_r) + soft q_r (logaddexp(n_r, logsumexp_k S_rk) - u_r)

with l_r a formula of ``core.formulas`` that the backend has in a kernel and d_r what it says of
label smoothing e; h and q are the weights of the rows. It computes what the formulas compute in
PyTorch, in one kernel for a dozen, and one more in backward. ``core.row_losses`` decides where it
may stand for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.row_interface import FusedFormula, RowLosses, RowProblem
from mxm_kernels.ops.library import (
    is_differentiated_once,
    library,
    register_autograd,
    schema,
    wanted,
)

_ROWS = schema(*RowProblem._fields)
library.define(
    f"row_losses({_ROWS}, str formula, float constant, float hard, float soft, "
    f"float smoothing, str backend) -> ({schema(*RowLosses._fields)})"
)
library.define(
    f"row_losses_backward(Tensor grad, {schema(*RowLosses._fields[1:])}, {_ROWS}, str formula, "
    "float constant, float hard, float soft, float smoothing, str backend) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_COUNT, _DERIVATIVES = len(RowProblem._fields), len(RowLosses._fields) - 1


def row_losses(rows: RowProblem, formula: FusedFormula, backend: str) -> Tensor:
    """(R,) losses, differentiable in the first five fields of ``rows``, its weights are not."""
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
def _backward(grad, *arguments):
    derivatives, rest = arguments[:_DERIVATIVES], arguments[_DERIVATIVES:]
    rows, formula = RowProblem(*rest[:_COUNT]), FusedFormula(*rest[_COUNT:-1])
    made = RowLosses(grad, *derivatives)
    with torch.no_grad():
        return tuple(backends.load(rest[-1]).row_losses_backward(grad, made, rows, formula))


@torch.library.register_fake("mxm_kernels::row_losses_backward", lib=library)
def _fake_backward(grad, *arguments):
    rows = RowProblem(*arguments[_DERIVATIVES : _DERIVATIVES + _COUNT])
    return tuple(rows.allocate_gradients())


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*output[1:], *inputs[:_COUNT])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.formula = inputs[_COUNT:]  # and the backend


def _differentiate(ctx, grad, *_):
    du, dn, dS, *others = torch.ops.mxm_kernels.row_losses_backward(
        grad, *ctx.saved_tensors, *ctx.formula
    )
    gradients = wanted((dn, dS, du, *others), ctx.needs_input_grad[:5])
    return *gradients, *[None] * (_COUNT - 5 + len(ctx.formula))


register_autograd("row_losses", _differentiate, _setup_context)
is_differentiated_once("mxm_kernels::row_losses_backward")
