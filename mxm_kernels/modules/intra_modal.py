"""Contrast inside one modality, as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mxm_kernels.functional.info_nce import check_flag
from mxm_kernels.functional.intra_modal import fused_intra_modal_loss
from mxm_kernels.functional.mfh import check_hard
from mxm_kernels.modules.base import Loss
from mxm_kernels.options import HyperParameters, check_fraction

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class IntraModalLoss(Loss):
    """:func:`fused_intra_modal_loss` with its hyper-parameters fixed.

    Args:
        mask_positives: leave the other positives of a row out of its denominator.
        rounds: R >= 1 random selections, or None for their exact expectation.
        soft_weight: b, the share of the soft loss, in [0, 1].
        reduction: "mean" or "none".
        backend: "triton", "native", "blocked", or None to choose by device.
        process_group: the batch is that of all its ranks, as in :class:`Options`.
        gather: "all" or "ring", as in :class:`Options`.

    Example:
        >>> from mxm_kernels import IntraModalLoss
        >>> IntraModalLoss(rounds=4)  # doctest: +NORMALIZE_WHITESPACE
        IntraModalLoss(mask_positives=True, rounds=4, soft_weight=0.0, reduction='mean',
                       backend=None, process_group=None, gather='all')
    """

    def __init__(
        self,
        mask_positives: bool = True,
        rounds: int | None = None,
        soft_weight: float = 0.0,
        reduction: Literal["mean", "none"] = "mean",
        backend: str | None = None,
        process_group: ProcessGroup | None = None,
        gather: Literal["all", "ring"] = "all",
    ) -> None:
        check_flag("mask_positives", mask_positives)
        check_hard(1.0, rounds)
        check_fraction("soft_weight", soft_weight)
        own = {"mask_positives": mask_positives, "rounds": rounds, "soft_weight": soft_weight}
        shared: HyperParameters = {
            "reduction": reduction,
            "backend": backend,
            "process_group": process_group,
            "gather": gather,
        }
        super().__init__(fused_intra_modal_loss, own, shared)

    def forward(
        self,
        features: Tensor,
        folds: Any,
        *,
        logit_scale: float | Tensor,
        teacher_features: Tensor | None = None,
        teacher_logit_scale: float | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        """Shapes and errors as in the function."""
        return self._run(
            features,
            folds,
            logit_scale=logit_scale,
            teacher_features=teacher_features,
            teacher_logit_scale=teacher_logit_scale,
            generator=generator,
            row_weights=row_weights,
        )
