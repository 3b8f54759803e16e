"""The sums of S over whole rows, which need no S: they are linear in the features.

With X = sum_i x_i and Y = sum_j y_j, (D,) each, and r_i and r_j the sums of the two sides:

    r_i = sum_j S_ij = s <x_i, Y>          r_j = sum_i S_ij = s <y_j, X>

and with g their upstream gradients, in the same two halves:

    dx_i = s (g_i Y + sum_j g_j y_j)       dy_j = s (g_j X + sum_i g_i x_i)       ds = <g, r> / s
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels.backends.interface import Gradients
from mxm_kernels.backends.row_interface import SummedRows


def feature_sums(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """(2, D) sums of the rows of x (M, D) and of y (N, D), weighted by the (M + N,) or not."""
    dtype = weights.dtype
    if not len(weights):
        return torch.stack([f.sum(0, dtype=dtype) for f in (x, y)])
    halves = weights.split([len(x), len(y)])
    return torch.stack([torch.mv(f.to(dtype).T, w) for f, w in zip((x, y), halves, strict=True)])


def row_sums(x: Tensor, y: Tensor, scale: Tensor, sums: Tensor) -> Tensor:
    """(M + N,) sums of S over the rows, from the ``sums`` (2, D) of all features."""
    of_x, of_y = (scale * sums).unbind()
    return torch.cat([torch.mv(x.to(sums.dtype), of_y), torch.mv(y.to(sums.dtype), of_x)])


def add_gradients(made: Gradients, rows: SummedRows, grad: Tensor, weighted: Tensor) -> Gradients:
    """``made`` and the gradients of the sums of the rows; see ``Backend.row_sums_backward``."""
    halves = grad.split([rows.images, len(grad) - rows.images])
    others = zip(halves, rows.sums.flip(0), weighted.flip(0), strict=True)
    dx, dy = (
        _added(d, rows.scale * (g[:, None] * total + more)) if len(d) else d
        for d, (g, total, more) in zip((made.x, made.y), others, strict=True)
    )
    return Gradients(dx, dy, made.scale + (grad * rows.made).sum() / rows.scale)


def _added(gradient: Tensor, more: Tensor) -> Tensor:
    """Their sum, rounded once into the dtype of the first."""
    return (gradient.to(more.dtype) + more).to(gradient.dtype)
