"""MFH, its hard and its soft part, as modules."""

from __future__ import annotations

from typing_extensions import Unpack

from mxm_kernels.functional.mfh import (
    NOT_TAKEN,
    check_hard,
    fused_hard_loss,
    fused_mfh_loss,
    fused_soft_loss,
)
from mxm_kernels.modules.base import DrawnLoss, PairedLoss
from mxm_kernels.options import HyperParameters, check_not_taken


class MFHLoss(DrawnLoss):
    """:func:`fused_mfh_loss` with its hyper-parameters fixed; no parameters, no state.

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

    def __init__(
        self,
        hard_weight: float = 0.6,
        rounds: int | None = 10,
        **options: Unpack[HyperParameters],
    ) -> None:
        check_hard(hard_weight, rounds)
        if "soft_weight" in options:
            raise TypeError("MFHLoss takes hard_weight, which is 1 - soft_weight")
        own = {"hard_weight": hard_weight, "rounds": rounds}
        super().__init__(fused_mfh_loss, own, options)


class HardLoss(DrawnLoss):
    """:func:`fused_hard_loss` with its hyper-parameters fixed.

    Args:
        rounds: R >= 1 random selections, or None for their exact expectation.
        **options: see :class:`HyperParameters`.

    Example:
        >>> from mxm_kernels import HardLoss
        >>> HardLoss(rounds=None, label_smoothing=0.1)
        HardLoss(rounds=None, label_smoothing=0.1)
    """

    def __init__(self, rounds: int | None = 10, **options: Unpack[HyperParameters]) -> None:
        check_hard(1.0, rounds)
        super().__init__(fused_hard_loss, {"rounds": rounds}, options)


class SoftLoss(PairedLoss):
    """:func:`fused_soft_loss` with its hyper-parameters fixed.

    Args:
        **options: see :class:`HyperParameters`; without ``soft_weight`` and ``label_smoothing``.

    Example:
        >>> from mxm_kernels import SoftLoss
        >>> SoftLoss(image_to_text_weight=0.75)
        SoftLoss(image_to_text_weight=0.75)
    """

    def __init__(self, **options: Unpack[HyperParameters]) -> None:
        check_not_taken("SoftLoss", NOT_TAKEN, options)
        super().__init__(fused_soft_loss, {}, options)
