"""SupCon as a module."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels import checks
from mxm_kernels.functional.supcon import fused_supcon_loss
from mxm_kernels.modules.base import Loss
from mxm_kernels.options import FoldsLike, HyperParameters, Inputs, Scale


class SupConLoss(Loss):
    """:func:`fused_supcon_loss` with its hyper-parameters fixed.

    Args:
        positives: "out" or "in", where the sum over the positives stands.
        **options: see :class:`HyperParameters`.

    Example:
        >>> from mxm_kernels import SupConLoss
        >>> SupConLoss("in")
        SupConLoss(positives='in')
    """

    def __init__(
        self, positives: Literal["out", "in"] = "out", **options: Unpack[HyperParameters]
    ) -> None:
        checks.check_choice("positives", positives, ("out", "in"))
        super().__init__(fused_supcon_loss, {"positives": positives}, options)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        folds: FoldsLike,
        *,
        logit_scale: Scale,
        **inputs: Unpack[Inputs],
    ) -> Tensor:
        """Shapes, options and errors as in the function."""
        return self._run(image_features, text_features, folds, logit_scale=logit_scale, **inputs)
