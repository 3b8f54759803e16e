"""The MFH loss of MXM-CLR and its two parts: hard (masked random selection) and soft."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels import checks
from mxm_kernels.core.batch import make_batch, require_folds
from mxm_kernels.core.formulas import info_nce
from mxm_kernels.core.options import FoldsLike, HyperParameters, Options, Scale, has_teacher
from mxm_kernels.core.row_losses import loss_of
from mxm_kernels.losses.loss_function import FILTER, IDS, loss_function
from mxm_kernels.losses.module import DrawnLoss, PairedLoss
from mxm_kernels.losses.selection import draws, weights_of


def check_drawn(
    hard_weight: float = 1.0,
    rounds: int | None = None,
    generator: object = None,
    selection: object = None,
    pair_weights: object = None,
) -> None:
    """The arguments of the hard and the MFH loss that say what is drawn, and how it is weighed."""
    checks.check_fraction("hard_weight", hard_weight)
    checks.check_rounds(rounds)
    checks.check_draw(generator, selection)
    if selection is not None and pair_weights is not None:
        raise TypeError("selection and pair_weights both say what was drawn: give one")


@loss_function(check_drawn, not_taken={"soft_weight": "hard_weight, which is 1 - soft_weight"})
def fused_mfh_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike,
    *,
    logit_scale: Scale,
    hard_weight: float = 0.6,
    rounds: int | None = 10,
    generator: torch.Generator | None = None,
    selection: tuple[Tensor, Tensor] | None = None,
    **options: Unpack[Options],
) -> Tensor:
    r"""Multifold-aware hybrid (MFH) contrastive loss of MXM-CLR, without an M x N matrix.

    S = s x y^T are the similarities of M images x and N texts y, and T those of the teacher.
    Pos(i) are the positives of image i: the texts of its instance. Its negatives are the other
    texts, and n_i is the log-sum-exp of S over them. In each of R rounds one positive of every
    row is drawn at random; w_ik is the share of the rounds that drew text k for image i.

        h_i = sum_{k in Pos(i)} w_ik softplus(n_i - S_ik)                        hard
        q_i = logsumexp_j S_ij - sum_j softmax_j(T_i.) S_ij                      soft
        L   = a/2 (mean_i h_i + mean_j h'_j) + (1-a)/2 (mean_i q_i + mean_j q'_j)

    h'_j and q'_j are the same for text j, from column j (arXiv 2303.10839, equations 5 to 9). The
    means of h are over the rows that have a positive, those of q over all rows. Without a
    teacher L is the hard loss alone. With ``hard_weight=0`` it is the soft loss alone; then nothing
    is drawn, and no weights of positives, ids or filter are read.

    Args:
        image_features: (M, D), L2-normalised; float32, bfloat16, float16, or float64 on the
            ``blocked`` backend. Under autocast they are cast to its dtype.
        text_features: (N, D), same dtype and device.
        folds: which rows show the same instance: :class:`Folds`, or a pair ``(views, captions)``
            of integers, or a pair ``(image_ids, text_ids)``.
        logit_scale: s = 1 / temperature, positive: a number, or a 0-d or [1] tensor, which
            receives its gradient. A pair of tensors ((M,), (N,)) is a scale for each row of either
            side (individual temperatures); it costs the matrix products twice.
        hard_weight: a, the share of the hard loss, in [0, 1].
        rounds: R >= 1 random selections, or None for their exact expectation (no randomness,
            same cost).
        generator: source of the draw. A CPU generator draws the same on every backend and
            device. None uses the default generator of the features' device, and with a
            ``process_group`` the CPU's, see :class:`Options`. A call that draws nothing
            (``rounds=None``, a ``selection``, ``pair_weights``, ``hard_weight=0``) leaves every
            generator as it was.
        selection: positives that were drawn before, as :func:`draw_selection` returns them:
            (image_to_text (R, M), text_to_image (R, N)), indices of rows of the other modality,
            -1 for a row without a positive. ``rounds`` and ``generator`` are then not used. Its
            check waits for a GPU.
        **options: see :class:`Options`. ``teacher_image_features`` (M, D') and
            ``teacher_text_features`` (N, D') add the soft loss; with ``hard_weight=1`` only a
            filter reads them. ``teacher_logit_scale`` is their scale t.

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``; float32 (float64 for
        float64 features). Where a tensor that is read is not finite, the loss, each of its rows
        and every gradient are NaN, or it is an error that names the argument.

    Raises:
        TypeError, ValueError: an argument is not as described; a batch without rows or
            without a positive pair.
        BackendUnavailableError: the backend asked for cannot run; the message says why.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> from mxm_kernels import fused_mfh_loss
        >>> _ = torch.manual_seed(0)
        >>> images = normalize(torch.randn(12, 64)).requires_grad_()  # 2 instances x 6 views
        >>> texts = normalize(torch.randn(10, 64)).requires_grad_()  # 2 instances x 5 captions
        >>> loss = fused_mfh_loss(images, texts, (6, 5), logit_scale=1 / 0.03)
        >>> loss.backward()
        >>> images.grad.shape
        torch.Size([12, 64])
    """
    require_folds(folds)
    taught = has_teacher(options)
    if not taught and hard_weight == 0:
        raise ValueError(
            "hard_weight=0 is the soft loss alone, which needs teacher_image_features and "
            "teacher_text_features"
        )
    options = {**options, "soft_weight": 1 - float(hard_weight) if taught else 0.0}
    batch = make_batch(
        image_features,
        text_features,
        folds,
        logit_scale,
        options,
        reads_teacher=True,
        draws=hard_weight != 0 and draws(rounds, selection, options),
        generator=generator,
    )
    if hard_weight == 0:
        return loss_of(batch, None)
    return loss_of(batch, info_nce, weights_of(batch, rounds, selection))


@loss_function(check_drawn)
def fused_hard_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike,
    *,
    logit_scale: Scale,
    rounds: int | None = 10,
    generator: torch.Generator | None = None,
    selection: tuple[Tensor, Tensor] | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """Hard relationship loss of MXM-CLR: InfoNCE with positives drawn at random, in R rounds.

        h_i = sum_{k in Pos(i)} w_ik softplus(n_i - S_ik)

    (arXiv 2303.10839, equation 6; symbols as in :func:`fused_mfh_loss`). In each round one
    positive of each row is drawn, and the other positives are left out. ``rounds=None`` is the
    exact expectation, in which every positive has the same weight. The loss is
    :func:`fused_mfh_loss` without its soft part; ``soft_weight`` adds a soft part.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: which rows show the same instance, as in :func:`fused_mfh_loss`.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        rounds: R >= 1 random selections, or None for their exact expectation.
        generator: source of the draw, as in :func:`fused_mfh_loss`.
        selection: drawn positives instead of a draw, as in :func:`fused_mfh_loss`.
        **options: see :class:`Options`.

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from mxm_kernels import fused_hard_loss
        >>> images, texts = torch.eye(3), torch.eye(3)  # 3 instances, 1 view, 1 caption
        >>> loss = fused_hard_loss(images, texts, (1, 1), logit_scale=2.0, rounds=None)
        >>> bool(torch.isclose(loss, torch.log(1 + 2 * torch.exp(torch.tensor(-2.0)))))
        True
    """
    require_folds(folds)
    batch = make_batch(
        image_features,
        text_features,
        folds,
        logit_scale,
        options,
        draws=draws(rounds, selection, options),
        generator=generator,
    )
    return loss_of(batch, info_nce, weights_of(batch, rounds, selection))


# The soft loss has the teacher's targets, and nothing else.
_NOT_TAKEN_BY_SOFT = ("soft_weight", "label_smoothing", "pair_weights", *IDS, *FILTER)


@loss_function(not_taken=dict.fromkeys(_NOT_TAKEN_BY_SOFT, ""))
def fused_soft_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None = None,
    *,
    logit_scale: Scale,
    **options: Unpack[Options],
) -> Tensor:
    """Cross-entropy of each row against the teacher's softmax over the whole row.

        q_i = logsumexp_j S_ij - sum_j softmax_j(T_i.) S_ij

    (arXiv 2303.10839, equation 8; ALBEF, arXiv 2107.07651). S = s x y^T are the similarities of
    the features, T_ij = t <a_i, b_j> those of the teacher's features a and b. These may be the
    features of momentum encoders, or the features of one modality given as both a and b.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: checked and not used: the loss does not depend on which rows show the same
            instance.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        **options: see :class:`Options`; ``teacher_image_features`` (M, D') and
            ``teacher_text_features`` (N, D') are needed; ``soft_weight``, ``label_smoothing``,
            ``pair_weights``, ids and the filter are not taken.

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from mxm_kernels import fused_soft_loss
        >>> images, texts = torch.eye(4), torch.eye(4)
        >>> teacher = {"teacher_image_features": images, "teacher_text_features": texts}
        >>> fused_soft_loss(images, texts, (1, 1), logit_scale=5.0, **teacher) < 0.2
        tensor(True)
    """
    if not has_teacher(options):
        raise ValueError("the soft loss needs teacher_image_features and teacher_text_features")
    options = {**options, "soft_weight": 1.0}
    return loss_of(make_batch(image_features, text_features, folds, logit_scale, options), None)


class MFHLoss(DrawnLoss):
    """:func:`fused_mfh_loss` as a module: hyper-parameters fixed, no parameters, no state.

    Args:
        hard_weight: a, the share of the hard loss, in [0, 1].
        rounds: R >= 1 random selections, or None for their exact expectation.
        **options: see :class:`HyperParameters`; without ``soft_weight``.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> from mxm_kernels import MFHLoss
        >>> criterion = MFHLoss(rounds=None)
        >>> images, texts = normalize(torch.eye(6)), normalize(torch.eye(6))
        >>> criterion(images, texts, (1, 1), logit_scale=20.0) < 1e-6
        tensor(True)
    """

    function = staticmethod(fused_mfh_loss)

    def __init__(
        self,
        hard_weight: float = 0.6,
        rounds: int | None = 10,
        **options: Unpack[HyperParameters],
    ) -> None:
        super().__init__({"hard_weight": hard_weight, "rounds": rounds}, options)


class HardLoss(DrawnLoss):
    """:func:`fused_hard_loss` as a module, with its hyper-parameters fixed.

    Args:
        rounds: R >= 1 random selections, or None for their exact expectation.
        **options: see :class:`HyperParameters`.

    Example:
        >>> from mxm_kernels import HardLoss
        >>> HardLoss(rounds=None, label_smoothing=0.1)
        HardLoss(rounds=None, label_smoothing=0.1)
    """

    function = staticmethod(fused_hard_loss)

    def __init__(self, rounds: int | None = 10, **options: Unpack[HyperParameters]) -> None:
        super().__init__({"rounds": rounds}, options)


class SoftLoss(PairedLoss):
    """:func:`fused_soft_loss` as a module, with its hyper-parameters fixed.

    Args:
        **options: see :class:`HyperParameters`; without ``soft_weight`` and ``label_smoothing``.

    Example:
        >>> from mxm_kernels import SoftLoss
        >>> SoftLoss(image_to_text_weight=0.75)
        SoftLoss(image_to_text_weight=0.75)
    """

    function = staticmethod(fused_soft_loss)

    def __init__(self, **options: Unpack[HyperParameters]) -> None:
        super().__init__({}, options)
