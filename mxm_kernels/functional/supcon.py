"""Losses in which every positive of a row has its share: SupCon and weighted targets."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels import checks
from mxm_kernels.algebra import selection as draws
from mxm_kernels.algebra.batch import make_batch
from mxm_kernels.algebra.losses import joint_rows, unmasked_rows
from mxm_kernels.algebra.reduction import reduce
from mxm_kernels.options import FoldsLike, Options, Scale, require_folds, resolve
from mxm_kernels.parallel.distributed import SharedErrors


def fused_supcon_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike,
    *,
    logit_scale: Scale,
    positives: Literal["out", "in"] = "out",
    **options: Unpack[Options],
) -> Tensor:
    """All positives of a row at once, as supervised contrastive learning has them.

        "out"   l_i = logaddexp(n_i, p_i) - mean_{k in Pos(i)} S_ik     mean of the logarithms
        "in"    l_i = softplus(n_i - p_i)                               logarithm of the sum

    with p_i = logsumexp_{k in Pos(i)} S_ik (SupCon, arXiv 2004.11362, equations 2 and 3). "in"
    here leaves out the constant log |Pos(i)|.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: which rows show the same instance, as in :func:`fused_mfh_loss`.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        positives: "out" or "in", where the sum over the positives stands.
        **options: see :class:`Options`; "in" takes no ``pair_weights``.

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from mxm_kernels import fused_supcon_loss
        >>> images, texts = torch.eye(4)[:2], torch.eye(4)  # 1 view, 2 captions
        >>> bool(fused_supcon_loss(images, texts, (1, 2), logit_scale=2.0) > 0)
        True
    """
    with SharedErrors(options.get("process_group")):
        o = resolve(options)
        require_folds(folds)
        checks.check_choice("positives", positives, ("out", "in"))
        if positives == "in" and o.pair_weights is not None:
            raise TypeError('positives="in" takes no pair_weights: it sums inside the logarithm')
    own = "supcon", positives
    batch = make_batch(image_features, text_features, folds, logit_scale, o, own=own)
    if positives == "in":
        return reduce(batch, joint_rows, (None, None))
    if o.pair_weights is not None:
        weights = draws.own_weights(batch.tables, o.pair_weights, batch.dtype)
    else:
        weights = draws.expected_weights(batch.tables, batch.dtype)
    return reduce(batch, unmasked_rows, batch.own_pairs(weights))
