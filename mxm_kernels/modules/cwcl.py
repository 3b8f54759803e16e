"""CWCL: pairs weighted by a given similarity, as a module."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels.functional.cwcl import NOT_TAKEN, fused_cwcl_loss
from mxm_kernels.modules.base import Loss
from mxm_kernels.options import HyperParameters, Inputs, Scale, check_not_taken


class CWCLLoss(Loss):
    """:func:`fused_cwcl_loss` with its hyper-parameters fixed.

    Args:
        **options: see :class:`HyperParameters`; without ``soft_weight``, ``label_smoothing`` and
            ``teacher_dtype``.

    Example:
        >>> from mxm_kernels import CWCLLoss
        >>> CWCLLoss(image_to_text_weight=1.0)
        CWCLLoss(image_to_text_weight=1.0)
    """

    def __init__(self, **options: Unpack[HyperParameters]) -> None:
        check_not_taken("CWCLLoss", NOT_TAKEN, options)
        super().__init__(fused_cwcl_loss, {}, options)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        *,
        logit_scale: Scale,
        **inputs: Unpack[Inputs],
    ) -> Tensor:
        """Shapes, options and errors as in the function."""
        return self._run(image_features, text_features, logit_scale=logit_scale, **inputs)
