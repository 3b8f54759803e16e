"""InfoNCE (CLIP), decoupled and debiased losses: one paired positive for each row.

Without folds, row i of both sides is a pair and an instance of its own. With folds the k-th
image of an instance is paired with its k-th text. Where an instance has fewer texts than images,
or fewer images than texts, the pairing starts again with the first of the fewer.
"""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels import checks
from mxm_kernels.core import formulas
from mxm_kernels.core.batch import make_batch
from mxm_kernels.core.formulas import Formula
from mxm_kernels.core.options import FoldsLike, HyperParameters, Options, Scale
from mxm_kernels.core.pair_weights import local_weights, paired_weights
from mxm_kernels.core.row_losses import loss_of
from mxm_kernels.losses.loss_function import TEACHER_OFFSETS, loss_function
from mxm_kernels.losses.module import PairedLoss


def check_masked(mask_false_negatives: bool = True) -> None:
    """The argument of InfoNCE."""
    checks.check_flag("mask_false_negatives", mask_false_negatives)


def check_prior(positive_prior: float = 0.1) -> None:
    """The argument of the debiased loss."""
    checks.check_fraction("positive_prior", positive_prior, below_one=True)


@loss_function(check_masked)
def fused_info_nce_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None = None,
    *,
    logit_scale: Scale,
    mask_false_negatives: bool = True,
    **options: Unpack[Options],
) -> Tensor:
    """InfoNCE, CLIP's loss: the paired positive of each row against its negatives.

        l_i = softplus(n_i - S_id)                        other positives left out (masked)
        l_i = logaddexp(n_i, logsumexp_k S_ik) - S_id     other positives count as negatives

    with d the paired column of row i, k over the positives of row i, and n_i the log-sum-exp of
    S = s x y^T over its negatives (arXiv 1807.03748, 2103.00020). Without folds both are CLIP's
    loss. With folds the first is InfoNCE+Mask of arXiv 2303.10839; the second is what CLIP
    computes on a batch with several rows of an instance.

    With folds the k-th image of an instance is paired with its k-th text. Where the counts
    differ, the pairing starts again with the first of the fewer.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: which rows show the same instance, as in :func:`fused_mfh_loss`. None: row i of
            both sides is a pair, and all other rows are its negatives (M = N).
        logit_scale: s, as in :func:`fused_mfh_loss`.
        mask_false_negatives: True leaves the other positives of a row out of its denominator.
            False counts them as negatives.
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
    # Without folds a row has no other positive: the same loss, in fewer launches.
    masked = mask_false_negatives or folds is None
    formula = formulas.info_nce if masked else formulas.supcon_out
    return _paired(image_features, text_features, folds, logit_scale, formula, options)


@loss_function()
def fused_decoupled_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None = None,
    *,
    logit_scale: Scale,
    **options: Unpack[Options],
) -> Tensor:
    """Decoupled contrastive loss (DCL): InfoNCE without the positive in its denominator.

        l_i = n_i - S_id

    (arXiv 2110.06848, equation 6; symbols as in :func:`fused_info_nce_loss`). It may be negative.
    A row without a negative has loss 0.

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
    formula = formulas.decoupled
    return _paired(image_features, text_features, folds, logit_scale, formula, options)


# Its floor knows the range of the logits of unit features.
_OFFSETS = ("image_offsets", "text_offsets", *TEACHER_OFFSETS)


@loss_function(check_prior, not_taken=dict.fromkeys(_OFFSETS, ""))
def fused_debiased_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None = None,
    *,
    logit_scale: Scale,
    positive_prior: float = 0.1,
    **options: Unpack[Options],
) -> Tensor:
    """Debiased contrastive loss: InfoNCE, corrected for unknown positives among the negatives.

        l_i = softplus(g_i - S_id)
        exp(g_i) = max((exp(n_i) - tau |Neg(i)| mean_k exp(S_ik)) / (1 - tau), |Neg(i)| exp(-s))

    (arXiv 2007.00224, equation 8; symbols as in :func:`fused_info_nce_loss`). |Neg(i)| is the
    number of negatives of row i. tau is the chance that a random sample is of the row's class.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: as in :func:`fused_info_nce_loss`.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        positive_prior: tau, in [0, 1). With 0 it is InfoNCE, for normalised features.
        **options: see :class:`Options`; without offsets, which would move its floor.

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
    formula = formulas.debiased(float(positive_prior))
    return _paired(image_features, text_features, folds, logit_scale, formula, options)


def _paired(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None,
    logit_scale: Scale,
    formula: Formula,
    options: Options,
) -> Tensor:
    folds = (1, 1) if folds is None else folds
    batch = make_batch(image_features, text_features, folds, logit_scale, options)
    return loss_of(batch, formula, local_weights(batch, paired_weights))


class InfoNCELoss(PairedLoss):
    """:func:`fused_info_nce_loss` as a module, with its hyper-parameters fixed.

    Args:
        mask_false_negatives: True leaves the other positives of a row out of its denominator.
            False counts them as negatives.
        **options: see :class:`HyperParameters`.

    Example:
        >>> import torch
        >>> from mxm_kernels import InfoNCELoss
        >>> InfoNCELoss()(torch.eye(4), torch.eye(4), logit_scale=20.0) < 1e-6
        tensor(True)
    """

    function = staticmethod(fused_info_nce_loss)

    def __init__(
        self, mask_false_negatives: bool = True, **options: Unpack[HyperParameters]
    ) -> None:
        super().__init__({"mask_false_negatives": mask_false_negatives}, options)


class DecoupledLoss(PairedLoss):
    """:func:`fused_decoupled_loss` as a module, with its hyper-parameters fixed.

    Args:
        **options: see :class:`HyperParameters`.

    Example:
        >>> from mxm_kernels import DecoupledLoss
        >>> DecoupledLoss(reduction="none")
        DecoupledLoss(reduction='none')
    """

    function = staticmethod(fused_decoupled_loss)

    def __init__(self, **options: Unpack[HyperParameters]) -> None:
        super().__init__({}, options)


class DebiasedLoss(PairedLoss):
    """:func:`fused_debiased_loss` as a module, with its hyper-parameters fixed.

    Args:
        positive_prior: tau in [0, 1).
        **options: see :class:`HyperParameters`.

    Example:
        >>> from mxm_kernels import DebiasedLoss
        >>> DebiasedLoss(0.05)
        DebiasedLoss(positive_prior=0.05)
    """

    function = staticmethod(fused_debiased_loss)

    def __init__(self, positive_prior: float = 0.1, **options: Unpack[HyperParameters]) -> None:
        super().__init__({"positive_prior": positive_prior}, options)
