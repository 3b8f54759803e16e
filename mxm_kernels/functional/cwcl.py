"""Continuously weighted contrastive loss: every pair is a positive, as much as it is similar."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels.algebra.batch import Batch, make_batch
from mxm_kernels.algebra.direction import Direction
from mxm_kernels.algebra.losses import logsumexp_rows
from mxm_kernels.algebra.reduction import reduce
from mxm_kernels.algebra.run import scaled
from mxm_kernels.options import Options, Scale, check_not_taken, resolve
from mxm_kernels.parallel.distributed import SharedErrors

NOT_TAKEN = (
    "soft_weight",
    "pair_weights",
    "label_smoothing",
    "teacher_logit_scale",
    "teacher_dtype",
    "image_queue",
    "text_queue",
)


def fused_cwcl_loss(
    image_features: Tensor,
    text_features: Tensor,
    *,
    logit_scale: Scale,
    **options: Unpack[Options],
) -> Tensor:
    """Continuously weighted contrastive loss (CWCL): targets linear in a given similarity.

        w_ij = (1 + <a_i, b_j>) / 2
        l_i  = logsumexp_j S_ij - sum_j w_ij S_ij / sum_j w_ij

    (arXiv 2309.14580, equations 3 and 4; there a = b are the features of the modality whose
    encoder is frozen). w needs no matrix: sum_j w_ij S_ij = s/2 x_i^T (sum_j y_j (1, b_j)^T)
    (1, a_i), which costs (M + N) D D' operations. A row whose weights are all 0 has target 0.
    The gradients of 16-bit features by the logarithm and by the target are rounded before they are
    added: where they cancel, a rounding of either part remains.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        **options: see :class:`Options`. ``teacher_image_features`` a (M, D') and
            ``teacher_text_features`` b (N, D'), L2-normalised, are needed; ``soft_weight``,
            ``pair_weights``, ``label_smoothing``, ``teacher_logit_scale`` and queues are not
            taken.

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> from mxm_kernels import fused_cwcl_loss
        >>> speech, text = normalize(torch.randn(6, 8)), normalize(torch.randn(6, 8))
        >>> frozen = normalize(torch.randn(6, 5))
        >>> loss = fused_cwcl_loss(speech, text, logit_scale=10.0,
        ...     teacher_image_features=frozen, teacher_text_features=frozen)
        >>> loss.shape
        torch.Size([])
    """
    with SharedErrors(options.get("process_group")):
        check_not_taken("fused_cwcl_loss", NOT_TAKEN, options)
        o = resolve(options, reads_teacher=True)
        if not o.has_teacher:
            raise ValueError("CWCL needs teacher_image_features and teacher_text_features")
    own = ("cwcl",)
    batch = make_batch(image_features, text_features, None, logit_scale, o, own=own)
    return reduce(batch, _weighted_rows, _targets(batch), every_row=True)


def _weighted_rows(d: Direction, target: Tensor, smoothing: float) -> Tensor:
    """l_i, from the weighted averages of the rows of S, (rows,)."""
    return logsumexp_rows(d) - target


def _targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """sum_j w_ij S_ij / sum_j w_ij of rows and columns, in the dtype of the loss.

    A scale for each row is rounded into 16-bit features here as it is where S is formed, or the
    log-sum-exp and the target of a row would be those of two matrices.
    """
    assert batch.teacher is not None
    a, b = (f.to(batch.dtype) for f in batch.teacher)
    x, y = batch.x.to(batch.dtype), batch.y.to(batch.dtype)
    own_x, own_y = x, y
    if not batch.one_scale:
        own_x = scaled(batch.x, batch.scales[0]).to(batch.dtype)
        own_y = scaled(batch.y, batch.scales[1]).to(batch.dtype)
    with torch.autocast(x.device.type, enabled=False):
        rows = _weighted_average(batch, own_x, y, a, b, batch.tables.texts)
        cols = _weighted_average(batch, own_y, x, b, a, batch.tables.images)
    return (batch.scales[0] * rows, batch.scales[1] * cols) if batch.one_scale else (rows, cols)


def _weighted_average(
    batch: Batch, x: Tensor, y: Tensor, a: Tensor, b: Tensor, columns: int
) -> Tensor:
    """(rows,) sum_j w_ij <x_i, y_j> / sum_j w_ij, as the plain average and what w adds to it.

        <x_i, mean y> + x_i^T (sum_j (y_j - mean y) (b_j - mean b)^T) a_i / sum_j (1 + <a_i, b_j>)

    Where a_i is opposite to the columns, the denominator keeps few digits, and so would the
    numerator be if it held the average too; what is left of it there is small.
    """
    y_mean, b_mean = batch.sum(y.sum(0)) / columns, batch.sum(b.sum(0)) / columns
    # The deviations of b sum to 0, so y_mean gets no gradient from those of y.
    together = batch.sum((y - y_mean.detach()).T @ (b - b_mean))
    total = columns * (1 + a @ b_mean)
    none = total == 0
    more = ((x @ together) * a).sum(1) / total.masked_fill(none, 1)
    return (x @ y_mean + more).masked_fill(none, 0)
