"""InfoNCE (CLIP) and its kin: one paired positive for each row.

Without folds, row i of both sides is a pair and an instance of its own. With folds the k-th
image of an instance is paired with its k-th text; where the counts differ, the pairing walks
the fewer again and again (the diagonal of the group).
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels import checks
from mxm_kernels.algebra import selection as draws
from mxm_kernels.algebra.batch import Batch, make_batch
from mxm_kernels.algebra.losses import DebiasedRows, decoupled_rows, masked_rows, unmasked_rows
from mxm_kernels.algebra.reduction import Formula, reduce
from mxm_kernels.options import FoldsLike, Options, Scale, check_fraction, resolve
from mxm_kernels.parallel.distributed import SharedErrors


def fused_info_nce_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None = None,
    *,
    logit_scale: Scale,
    mask_false_negatives: bool = True,
    **options: Unpack[Options],
) -> Tensor:
    """InfoNCE, CLIP's loss: the paired positive against the row.

        l_i = softplus(n_i - S_id)                        other positives masked
        l_i = logaddexp(n_i, logsumexp_k S_ik) - S_id     they count as negatives

    with d the paired column of row i (arXiv 1807.03748, 2103.00020). Without folds both are
    CLIP. With folds they are CLIP on the group matrix with its false negatives masked
    (InfoNCE+Mask of arXiv 2303.10839) or not.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: which rows show the same instance, as in :func:`fused_mfh_loss`; None: row i of
            both sides is a pair, and every other row a negative (M = N).
        logit_scale: s, as in :func:`fused_mfh_loss`.
        mask_false_negatives: leave the other positives of a row out of its denominator.
        **options: see :class:`Options`. With ``soft_weight`` and a momentum teacher it is
            ALBEF's momentum distillation (arXiv 2107.07651).

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from torch.nn.functional import cross_entropy, normalize
        >>> from mxm_kernels import fused_info_nce_loss
        >>> images, texts = normalize(torch.randn(8, 4)), normalize(torch.randn(8, 4))
        >>> loss = fused_info_nce_loss(images, texts, logit_scale=10.0)
        >>> logits, target = 10 * images @ texts.T, torch.arange(8)
        >>> clip = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
        >>> bool(torch.isclose(loss, clip))
        True
    """
    with SharedErrors(options.get("process_group")):
        check_flag("mask_false_negatives", mask_false_negatives)
    # Without folds a row has no other positive: the same loss, in fewer launches.
    masked = mask_false_negatives or folds is None
    formula = masked_rows if masked else unmasked_rows
    own = "info_nce", mask_false_negatives
    return _paired(image_features, text_features, folds, logit_scale, formula, options, own)


def fused_decoupled_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None = None,
    *,
    logit_scale: Scale,
    **options: Unpack[Options],
) -> Tensor:
    """Decoupled contrastive learning: InfoNCE without the positive in its denominator.

        l_i = n_i - S_id

    (DCL, arXiv 2110.06848, equation 6). It may be negative; a row without a negative has
    loss 0.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: as in :func:`fused_info_nce_loss`; positives are never negatives.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        **options: see :class:`Options`.

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from mxm_kernels import fused_decoupled_loss
        >>> fused_decoupled_loss(torch.eye(2), torch.eye(2), logit_scale=3.0)
        tensor(-3.)
    """
    own = ("decoupled",)
    return _paired(image_features, text_features, folds, logit_scale, decoupled_rows, options, own)


def fused_debiased_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None = None,
    *,
    logit_scale: Scale,
    positive_prior: float = 0.1,
    **options: Unpack[Options],
) -> Tensor:
    """Debiased contrastive loss: InfoNCE whose negatives are freed of expected positives.

        l_i = softplus(g_i - S_id)
        exp(g_i) = max((exp(n_i) - tau |Neg(i)| mean_k exp(S_ik)) / (1 - tau), |Neg(i)| exp(-s))

    (arXiv 2007.00224, equation 8), tau the chance that a random sample is of the row's class.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: as in :func:`fused_info_nce_loss`.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        positive_prior: tau in [0, 1).
        **options: see :class:`Options`.

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> from mxm_kernels import fused_debiased_loss, fused_info_nce_loss
        >>> images, texts = normalize(torch.randn(8, 4)), normalize(torch.randn(8, 4))
        >>> plain = fused_info_nce_loss(images, texts, logit_scale=5.0)
        >>> bool(fused_debiased_loss(images, texts, logit_scale=5.0, positive_prior=0) == plain)
        True
    """
    with SharedErrors(options.get("process_group")):
        check_fraction("positive_prior", positive_prior, below_one=True)
    formula = DebiasedRows(float(positive_prior))
    own = "debiased", float(positive_prior)
    return _paired(image_features, text_features, folds, logit_scale, formula, options, own)


def fused_self_distillation_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None = None,
    *,
    logit_scale: Scale,
    soft_share: float,
    generator: torch.Generator | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """Progressive self-distillation: some rows learn from pairs, the others from soft targets.

        l_i = softplus(n_i - S_id)    or    q_i = logsumexp_j S_ij - sum_j softmax_j(T_i.) S_ij

    A random ``soft_share`` of the rows of either side gets q (Robust-XR, Andonian et al., CVPR
    2022); training raises the share step by step. The teacher is the batch itself, detached,
    unless the features of another are given, of both sides.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: as in :func:`fused_info_nce_loss`.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        soft_share: share of rows with soft targets, in [0, 1], rounded to whole rows.
        generator: source of the choice of rows, as in :func:`fused_mfh_loss`.
        **options: see :class:`Options`; without ``soft_weight``.

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> from mxm_kernels import fused_info_nce_loss, fused_self_distillation_loss
        >>> images, texts = normalize(torch.randn(8, 4)), normalize(torch.randn(8, 4))
        >>> start = fused_self_distillation_loss(images, texts, logit_scale=5.0, soft_share=0.0)
        >>> bool(torch.isclose(start, fused_info_nce_loss(images, texts, logit_scale=5.0)))
        True
    """
    with SharedErrors(options.get("process_group")):
        check_fraction("soft_share", soft_share)
        checks.check_draw(generator, None)
        if "soft_weight" in options:
            raise TypeError("fused_self_distillation_loss takes soft_share instead of soft_weight")
        o = resolve(_with_teacher(options, image_features, text_features), reads_teacher=True)
    batch = make_batch(
        image_features,
        text_features,
        (1, 1) if folds is None else folds,
        logit_scale,
        o,
        generator=generator,
        own=("self_distillation", float(soft_share)),
    )
    shares = [
        draws.draw_rows(rows, float(soft_share), batch.generator, batch.x.device, batch.dtype)
        for rows in (batch.tables.images, batch.tables.texts)
    ]
    return reduce(batch.with_soft(batch.own_rows(*shares)), masked_rows, _weights(batch))


def _with_teacher(options: Options, image_features: Tensor, text_features: Tensor) -> Options:
    """The batch as its own teacher, where the options name none."""
    names = "teacher_image_features", "teacher_text_features"
    if any(options.get(name) is not None for name in names):
        return options
    return {
        **options,
        "teacher_image_features": image_features,
        "teacher_text_features": text_features,
    }


def _paired(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None,
    logit_scale: Scale,
    formula: Formula,
    options: Options,
    own: tuple,
) -> Tensor:
    with SharedErrors(options.get("process_group")):
        o = resolve(options)
    folds = (1, 1) if folds is None else folds
    batch = make_batch(image_features, text_features, folds, logit_scale, o, own=own)
    return reduce(batch, formula, _weights(batch))


def _weights(batch: Batch) -> draws.Weights:
    own = batch.options.pair_weights
    if own is not None:
        return batch.own_pairs(draws.own_weights(batch.tables, own, batch.dtype))
    return batch.own_pairs(draws.paired_weights(batch.tables, batch.dtype))


def check_flag(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")
