"""The list of rows itself, for losses that the package does not have."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels.core.batch import make_batch, require_folds
from mxm_kernels.core.make_rows import rows_of
from mxm_kernels.core.options import FoldsLike, Options, Scale, has_teacher
from mxm_kernels.core.rows import Rows
from mxm_kernels.losses.loss_function import loss_function

# What belongs to a formula or to what becomes of its losses.
_NOT_TAKEN = ("soft_weight", "label_smoothing", "pair_weights", "reduction", "diagnostics")


@loss_function(not_taken=dict.fromkeys(_NOT_TAKEN, ""))
def contrastive_rows(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike,
    *,
    logit_scale: Scale,
    **options: Unpack[Options],
) -> Rows:
    """What a loss needs of each row of S = s x y^T and of its transpose, without an M x N matrix.

    The result is one list of R = M + N rows, images first (:class:`Rows`). Each row has the
    log-sum-exp of S over its negatives, S of its positives, and with a teacher the average of S
    under the teacher's softmax, which cross-entropy needs. A loss of your own is a few lines of
    PyTorch over the list, ending in :meth:`Rows.mean`. It runs on every backend, over ranks, with
    queues and a scale for each row. The list is differentiable once.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: which rows show the same instance, as in :func:`fused_mfh_loss`.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        **options: see :class:`Options`; without ``soft_weight``, ``label_smoothing``,
            ``pair_weights``, ``reduction`` and ``diagnostics``.

    Returns:
        The list, :class:`Rows`: M image rows, then N text rows.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> from mxm_kernels import contrastive_rows
        >>> images, texts = normalize(torch.randn(12, 8)), normalize(torch.randn(10, 8))
        >>> rows = contrastive_rows(images, texts, (6, 5), logit_scale=20.0)
        >>> rows.neg_lse.shape, rows.positives.shape
        (torch.Size([22]), torch.Size([120]))
    """
    require_folds(folds)
    batch = make_batch(
        image_features, text_features, folds, logit_scale, options, reads_teacher=True
    )
    return rows_of(batch, reads_teacher=has_teacher(options))
