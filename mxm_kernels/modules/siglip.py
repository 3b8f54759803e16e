"""SigLIP as a module."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels.functional.siglip import NOT_TAKEN, fused_siglip_loss
from mxm_kernels.modules.base import Loss
from mxm_kernels.options import FoldsLike, HyperParameters, Inputs, Scale, check_not_taken


class SigLipLoss(Loss):
    """:func:`fused_siglip_loss` with its hyper-parameters fixed.

    Args:
        **options: see :class:`HyperParameters`; without ``soft_weight``, ``label_smoothing`` and
            ``teacher_dtype``.

    Example:
        >>> import torch
        >>> from mxm_kernels import SigLipLoss
        >>> x = torch.eye(4)
        >>> bool(SigLipLoss()(x, x, logit_scale=20.0, logit_bias=-10.0) < 1e-3)
        True
    """

    def __init__(self, **options: Unpack[HyperParameters]) -> None:
        check_not_taken("SigLipLoss", NOT_TAKEN, options)
        super().__init__(fused_siglip_loss, {}, options)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        folds: FoldsLike | None = None,
        *,
        logit_scale: Scale,
        logit_bias: float | Tensor,
        **inputs: Unpack[Inputs],
    ) -> Tensor:
        """Shapes, options and errors as in the function."""
        return self._run(
            image_features,
            text_features,
            folds,
            logit_scale=logit_scale,
            logit_bias=logit_bias,
            **inputs,
        )
