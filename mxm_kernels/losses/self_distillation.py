"""Progressive self-distillation: InfoNCE for some rows, soft targets for the others."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels import checks
from mxm_kernels.core.batch import make_batch, with_soft_weights
from mxm_kernels.core.formulas import info_nce
from mxm_kernels.core.options import (
    FoldsLike,
    HyperParameters,
    Inputs,
    Options,
    Scale,
    has_teacher,
)
from mxm_kernels.core.pair_weights import draw_rows, local_weights, paired_weights
from mxm_kernels.core.row_losses import loss_of
from mxm_kernels.losses.loss_function import loss_function
from mxm_kernels.losses.module import Loss


def check_share(soft_share: float = 0.0, generator: object = None) -> None:
    """Check the share of the rows that get soft targets, and the generator that draws them."""
    checks.check_fraction("soft_share", soft_share)
    checks.check_draw(generator, None)


@loss_function(check_share, not_taken={"soft_weight": "soft_share instead of soft_weight"})
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

    (Robust-XR, Andonian et al., CVPR 2022; l as in :func:`fused_info_nce_loss`, q as in
    :func:`fused_soft_loss`). A random share of the rows of either side, ``soft_share``, gets q.
    Training raises the share step by step. The teacher is the batch itself, detached, unless
    teacher features of both sides are given.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: as in :func:`fused_info_nce_loss`.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        soft_share: share of the rows that get soft targets, in [0, 1], rounded to whole rows. 0
            and 1 draw nothing.
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
    folds = (1, 1) if folds is None else folds
    if not has_teacher(options):
        options = {
            **options,
            "teacher_image_features": image_features,
            "teacher_text_features": text_features,
        }
    batch = make_batch(
        image_features,
        text_features,
        folds,
        logit_scale,
        options,
        reads_teacher=True,
        draws=0 < soft_share < 1,
        generator=generator,
    )
    batch = with_soft_weights(batch, draw_rows(batch, float(soft_share)))
    return loss_of(batch, info_nce, local_weights(batch, paired_weights))


class SelfDistillationLoss(Loss):
    """:func:`fused_self_distillation_loss` as a module, with its hyper-parameters fixed.

    Args:
        **options: see :class:`HyperParameters`; without ``soft_weight``.

    Example:
        >>> import torch
        >>> from mxm_kernels import SelfDistillationLoss
        >>> criterion = SelfDistillationLoss()
        >>> steps = [criterion(torch.eye(4), torch.eye(4), logit_scale=3.0, soft_share=step / 10)
        ...     for step in range(5)]  # the share grows with training
    """

    function = staticmethod(fused_self_distillation_loss)

    def __init__(self, **options: Unpack[HyperParameters]) -> None:
        super().__init__({}, options)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        folds: FoldsLike | None = None,
        *,
        logit_scale: Scale,
        soft_share: float,
        generator: torch.Generator | None = None,
        **inputs: Unpack[Inputs],
    ) -> Tensor:
        """Shapes, options and errors as in the function."""
        return self._run(
            image_features,
            text_features,
            folds,
            logit_scale=logit_scale,
            soft_share=soft_share,
            generator=generator,
            **inputs,
        )
