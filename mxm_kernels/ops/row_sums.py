"""The sums of S over whole rows, which label smoothing reads; see ``backends/row_sums.py``.

Over ranks the features of all ranks are summed, between one operator and the next. So an
autograd.Function joins the operators. The features and the scale pass through it: its backward
gets the gradients of whatever reads them next, and adds its own in one launch, in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.interface import Gradients
from mxm_kernels.backends.row_interface import SummedRows
from mxm_kernels.ops.library import (
    is_differentiated_once,
    library,
    no_graph,
    passed_on,
    schema,
)

_GRADIENTS = schema("dx", "dy", "ds")
library.define("feature_sums(Tensor x, Tensor y, Tensor weights, str backend) -> Tensor")
library.define("row_sums(Tensor x, Tensor y, Tensor scale, Tensor sums, str backend) -> Tensor")
library.define(
    f"row_sums_backward({_GRADIENTS}, Tensor scale, Tensor sums, Tensor made, SymInt images, "
    "Tensor grad, Tensor weighted, str backend) -> (Tensor, Tensor, Tensor)"
)
AddUp = Callable[[Tensor], Tensor]  # over the ranks


def with_row_sums(
    x: Tensor, y: Tensor, scale: Tensor, backend: str, add_up: AddUp | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features (M, D), (N, D) and scale () as they are, and (M + N,) the sums of S over the rows.

    Whatever else reads the features has to read the first three results: backward adds the
    gradients of the sums to theirs. ``add_up`` sums a tensor over the ranks.
    """
    return _WithRowSums.apply(x, y, scale, backend, add_up)


class _WithRowSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, scale, backend, add_up):
        run = torch.ops.mxm_kernels
        sums = run.feature_sums(x, y, scale.new_empty(0), backend)
        sums = sums if add_up is None else add_up(sums)
        made = run.row_sums(x, y, scale, sums, backend)
        ctx.save_for_backward(x, y, scale, sums, made)
        ctx.backend, ctx.add_up = backend, add_up
        ctx.set_materialize_grads(False)
        return *passed_on(ctx, x, y, scale), made

    @staticmethod
    def backward(ctx, dx, dy, ds, grad):
        x, y, scale, sums, made = ctx.saved_tensors
        if grad is None:
            return dx, dy, ds, None, None
        run, backend, grad = torch.ops.mxm_kernels, ctx.backend, grad.contiguous()
        weighted = run.feature_sums(x, y, grad, backend)
        weighted = weighted if ctx.add_up is None else ctx.add_up(weighted)
        needs = ctx.needs_input_grad[:3]
        like = zip((dx, dy, ds), (x, y, scale), needs, (x[:0], y[:0], scale), strict=True)
        given = [_or_zeros(d, v, empty, need) for d, v, need, empty in like]
        gradients = run.row_sums_backward(
            *given, scale, sums, made, len(x), grad, weighted, backend
        )
        return *(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None


def _or_zeros(gradient: Tensor | None, like: Tensor, empty: Tensor, needed: bool) -> Tensor:
    """A gradient that was given; zeros where none was, of no row where none is needed."""
    if gradient is not None:
        return gradient.contiguous()
    return torch.zeros_like(like if needed else empty, memory_format=torch.contiguous_format)


@torch.library.impl(library, "feature_sums", "CompositeExplicitAutograd")
def _feature_sums(x, y, weights, backend):
    with no_graph(x):
        return backends.load(backend).feature_sums(x.contiguous(), y.contiguous(), weights)


@torch.library.register_fake("mxm_kernels::feature_sums", lib=library)
def _fake_feature_sums(x, y, weights, backend):
    return weights.new_empty((2, x.shape[1]))


@torch.library.impl(library, "row_sums", "CompositeExplicitAutograd")
def _row_sums(x, y, scale, sums, backend):
    with no_graph(x):
        return backends.load(backend).row_sums(x.contiguous(), y.contiguous(), scale, sums)


@torch.library.register_fake("mxm_kernels::row_sums", lib=library)
def _fake_row_sums(x, y, scale, sums, backend):
    return sums.new_empty(x.shape[0] + y.shape[0])


@torch.library.impl(library, "row_sums_backward", "CompositeExplicitAutograd")
def _row_sums_backward(dx, dy, ds, scale, sums, made, images, grad, weighted, backend):
    rows = SummedRows(scale, sums, made, images)
    with no_graph(dx):
        run = backends.load(backend).row_sums_backward
        return tuple(run(Gradients(dx, dy, ds), rows, grad, weighted))


@torch.library.register_fake("mxm_kernels::row_sums_backward", lib=library)
def _fake_row_sums_backward(dx, dy, ds, *rest):
    return tuple(map(torch.empty_like, (dx, dy, ds)))


is_differentiated_once("mxm_kernels::row_sums_backward")
