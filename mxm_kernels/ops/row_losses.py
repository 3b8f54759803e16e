"""The operator of the fused formulas: losses of the list of rows and their derivatives.

    losses_r = hard h_r (l_r + e d_r) + soft q_r (logaddexp(n_r, logsumexp_k S_rk) - u_r)

l_r is a formula of ``core.formulas`` that the backend has in a kernel. d_r is what label smoothing
adds, e its share. h and q are the weights of the rows. One kernel computes what takes a dozen
launches in PyTorch, and one more kernel runs in backward. ``core.row_losses`` decides where they
are used instead of the formulas.

``result`` says what the operator returns: "rows" the losses, "sum" their sum, "checked rows" the
losses, which are all NaN where one is not finite. With "sum" and "checked rows" every gradient is
NaN where a loss is not finite, in other rows too; see ``core.mean.nan_everywhere``.
"""

from __future__ import annotations

from typing import Literal

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
_FORMULA = "str formula, float constant, float hard, float soft, float smoothing, str backend"
_DERIVATIVES = RowLosses._fields[1:]
library.define(f"row_losses({_ROWS}, {_FORMULA}, str result) -> ({schema('made', *_DERIVATIVES)})")
library.define(
    f"row_losses_backward(Tensor grad, Tensor? checked, {schema(*_DERIVATIVES)}, {_ROWS}, "
    f"{_FORMULA}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_COUNT = len(RowProblem._fields)
Result = Literal["rows", "sum", "checked rows"]


def row_losses(
    rows: RowProblem, formula: FusedFormula, backend: str, result: Result = "rows"
) -> Tensor:
    """(R,) losses or () their sum, differentiable in the first five fields of ``rows``.

    The weights get no gradient.
    """
    return torch.ops.mxm_kernels.row_losses(*rows, *formula, backend, result)[0]


@torch.library.impl(library, "row_losses", "CompositeExplicitAutograd")
def _forward(*arguments):
    # Backends read them by address, and a caller's weights may be a strided view.
    rows = RowProblem(*[v.contiguous() for v in arguments[:_COUNT]])
    *formula, backend, result = arguments[_COUNT:]
    with torch.no_grad():
        losses, *derivatives = backends.load(backend).row_losses(rows, FusedFormula(*formula))
        if result == "sum":
            losses = losses.sum()
        elif result == "checked rows":  # by the greatest: a sum might overflow
            losses = torch.add(losses, torch.linalg.vector_norm(losses, torch.inf), alpha=0)
    return losses, *derivatives


@torch.library.register_fake("mxm_kernels::row_losses", lib=library)
def _fake_forward(*arguments):
    losses, *derivatives = RowProblem(*arguments[:_COUNT]).allocate()
    return losses.new_empty(()) if arguments[-1] == "sum" else losses, *derivatives


@torch.library.impl(library, "row_losses_backward", "CompositeExplicitAutograd")
def _backward(grad, checked, *arguments):
    derivatives, rest = arguments[: len(_DERIVATIVES)], arguments[len(_DERIVATIVES) :]
    rows, formula = RowProblem(*rest[:_COUNT]), FusedFormula(*rest[_COUNT:-1])
    made = RowLosses(grad, *derivatives)
    with torch.no_grad():
        run = backends.load(rest[-1]).row_losses_backward
        return tuple(run(grad, checked, made, rows, formula))


@torch.library.register_fake("mxm_kernels::row_losses_backward", lib=library)
def _fake_backward(grad, checked, *arguments):
    rows = RowProblem(*arguments[len(_DERIVATIVES) :][:_COUNT])
    return tuple(rows.allocate_gradients())


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*output, *inputs[:_COUNT])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    *ctx.formula, ctx.result = inputs[_COUNT:]  # and the backend


def _differentiate(ctx, grad, *_):
    made, *saved = ctx.saved_tensors  # once: hooks compute or copy them at every access
    checked = None if ctx.result == "rows" else made
    du, dn, dS, *others = torch.ops.mxm_kernels.row_losses_backward(
        grad, checked, *saved, *ctx.formula
    )
    gradients = wanted((dn, dS, du, *others), ctx.needs_input_grad[:5])
    return *gradients, *[None] * (_COUNT - 5 + len(ctx.formula) + 1)


register_autograd("row_losses", _differentiate, _setup_context)
is_differentiated_once("mxm_kernels::row_losses_backward")
