"""Continuously weighted contrastive loss: every pair is a positive, as much as it is similar."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels.algebra.batch import make_batch
from mxm_kernels.algebra.direction import Direction
from mxm_kernels.algebra.losses import logsumexp_rows
from mxm_kernels.algebra.plain import is_plain, plain_loss
from mxm_kernels.algebra.reduction import reduce
from mxm_kernels.algebra.weighted_targets import targets, without_mean_target
from mxm_kernels.backends.problem import Form
from mxm_kernels.options import Options, Scale, check_not_taken, resolve
from mxm_kernels.parallel.distributed import SharedErrors

NOT_TAKEN = (
    "folds",
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
    (1, a_i), which costs (M + N) D D' operations; where w is cheaper it is made, of at most 16 MiB.
    A row whose weights are all 0 has target 0.
    The gradients of 16-bit features by the logarithm and by the target are rounded before they are
    added: where they cancel, a rounding of either part remains.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        **options: see :class:`Options`. ``teacher_image_features`` a (M, D') and
            ``teacher_text_features`` b (N, D'), L2-normalised, are needed; ``soft_weight``,
            ``pair_weights``, ``label_smoothing``, ``teacher_logit_scale``, ``teacher_dtype`` and
            queues are not taken.

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
    o = batch.options
    if is_plain(batch, ()) and o.image_weights is None and o.text_weights is None:
        return without_mean_target(batch, plain_loss(batch, (None, None), Form("whole")))
    return reduce(batch, _weighted_rows, targets(batch), every_row=True)


def _weighted_rows(d: Direction, target: Tensor, smoothing: float) -> Tensor:
    """l_i, from the weighted averages of the rows of S, (rows,)."""
    return logsumexp_rows(d) - target
