"""One feature for each instance: the mean of the features of its observations, normalised again.

It is for losses that compare an instance as a whole: a text with a shape (all views of it
together), an image with all of its texts, or both. It is differentiable, takes ragged folds, and
gives the same bits in every run.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mxm_kernels import checks
from mxm_kernels.folds import Ids, as_one_side


def fold_mean(
    features: Tensor, ids: int | Ids, *, normalized: bool = True
) -> tuple[Tensor, Tensor]:
    """Mean of the rows of each instance: one feature for an instance instead of several.

        z_g = sum_{i in g} x_i / |g|,    divided by its norm

    (TriCoLo's multi-view mean, arXiv 2201.07366).

    Args:
        features: (M, D), any floating-point dtype; a row for each image, or for each text.
        ids: which instance each row shows: (M,) integers in any order, a tensor on the device of
            the features, an array or a sequence. Or one integer, the number of consecutive rows
            of each instance.
        normalized: divide each mean by its L2 norm.

    Returns:
        (G, D) features of the G instances in the dtype given, summed in float32 or wider; and
        (G,) int64, the ids of the instances, ascending, for ``Folds.from_ids``. Ids on a GPU make
        the call wait for the GPU, which counts the instances; a number of rows does not.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> from mxm_kernels import fold_mean
        >>> views = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]])
        >>> shapes, ids = fold_mean(views, [5, 2, 5], normalized=False)
        >>> shapes.tolist(), ids.tolist()
        ([[0.0, 2.0], [0.5, 1.5]], [2, 5])
    """
    checks.check_matrix("features", features)
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    instances = as_one_side("ids", ids, len(features))
    if isinstance(instances, int):
        means, names = _consecutive(wide, instances)
    else:
        means, names = _scattered(wide, instances.to(features.device))
    if normalized:
        means = normalize(means, dim=1)
    return means.to(features.dtype), names


def _consecutive(x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    means = x.reshape(-1, rows, x.shape[1]).mean(1)
    return means, torch.arange(len(means), device=x.device)


def _scattered(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    names, counts = torch.unique(ids, return_counts=True)
    order = ids.argsort(stable=True)
    sorted_rows = _Permuted.apply(x, order)
    means = torch.segment_reduce(sorted_rows, "mean", lengths=counts, axis=0)
    return means, names


class _Permuted(torch.autograd.Function):
    """Rows in another order; the gradient goes back without additions."""

    @staticmethod
    def forward(ctx, x, order):
        ctx.save_for_backward(order)
        return x[order]

    @staticmethod
    def backward(ctx, grad):
        (order,) = ctx.saved_tensors
        return torch.empty_like(grad).index_copy_(0, order, grad), None
