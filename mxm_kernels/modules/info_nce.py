"""InfoNCE and its kin, as modules."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels.functional.info_nce import (
    check_flag,
    fused_debiased_loss,
    fused_decoupled_loss,
    fused_info_nce_loss,
    fused_self_distillation_loss,
)
from mxm_kernels.modules.base import Loss, PairedLoss
from mxm_kernels.options import FoldsLike, HyperParameters, Inputs, Scale, check_fraction


class InfoNCELoss(PairedLoss):
    """:func:`fused_info_nce_loss` with its hyper-parameters fixed.

    Args:
        mask_false_negatives: leave the other positives of a row out of its denominator.
        **options: see :class:`HyperParameters`.

    Example:
        >>> import torch
        >>> from mxm_kernels import InfoNCELoss
        >>> InfoNCELoss()(torch.eye(4), torch.eye(4), logit_scale=20.0) < 1e-6
        tensor(True)
    """

    def __init__(
        self, mask_false_negatives: bool = True, **options: Unpack[HyperParameters]
    ) -> None:
        check_flag("mask_false_negatives", mask_false_negatives)
        own = {"mask_false_negatives": mask_false_negatives}
        super().__init__(fused_info_nce_loss, own, options)


class DecoupledLoss(PairedLoss):
    """:func:`fused_decoupled_loss` with its hyper-parameters fixed.

    Args:
        **options: see :class:`HyperParameters`.

    Example:
        >>> from mxm_kernels import DecoupledLoss
        >>> DecoupledLoss(reduction="none")
        DecoupledLoss(reduction='none')
    """

    def __init__(self, **options: Unpack[HyperParameters]) -> None:
        super().__init__(fused_decoupled_loss, {}, options)


class DebiasedLoss(PairedLoss):
    """:func:`fused_debiased_loss` with its hyper-parameters fixed.

    Args:
        positive_prior: tau in [0, 1).
        **options: see :class:`HyperParameters`.

    Example:
        >>> from mxm_kernels import DebiasedLoss
        >>> DebiasedLoss(0.05)
        DebiasedLoss(positive_prior=0.05)
    """

    def __init__(self, positive_prior: float = 0.1, **options: Unpack[HyperParameters]) -> None:
        check_fraction("positive_prior", positive_prior, below_one=True)
        own = {"positive_prior": positive_prior}
        super().__init__(fused_debiased_loss, own, options)


class SelfDistillationLoss(Loss):
    """:func:`fused_self_distillation_loss` with its hyper-parameters fixed.

    Args:
        **options: see :class:`HyperParameters`; without ``soft_weight``.

    Example:
        >>> import torch
        >>> from mxm_kernels import SelfDistillationLoss
        >>> criterion = SelfDistillationLoss()
        >>> steps = [criterion(torch.eye(4), torch.eye(4), logit_scale=3.0, soft_share=step / 10)
        ...     for step in range(5)]  # the share grows with training
    """

    def __init__(self, **options: Unpack[HyperParameters]) -> None:
        if "soft_weight" in options:
            raise TypeError("SelfDistillationLoss takes soft_share with each batch")
        super().__init__(fused_self_distillation_loss, {}, options)

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
