"""The public losses as modules: they hold hyper-parameters and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mxm_kernels import checks
from mxm_kernels.functional import FoldsLike, fused_mfh_loss


class MFHLoss(nn.Module):
    """:func:`fused_mfh_loss` with its hyper-parameters fixed; no parameters, no state.

    Args:
        hard_weight: a, the share of the hard loss, in [0, 1].
        rounds: R >= 1 random selections, or None for their exact expectation.
        reduction: "mean" or "none".
        backend: "triton", "native", "blocked", or None to choose by device.

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
        reduction: str = "mean",
        backend: str | None = None,
    ) -> None:
        super().__init__()
        checks.check_options(hard_weight, rounds, reduction)
        self.hard_weight = hard_weight
        self.rounds = rounds
        self.reduction = reduction
        self.backend = backend

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        folds: FoldsLike,
        *,
        logit_scale: float | Tensor,
        teacher_image_features: Tensor | None = None,
        teacher_text_features: Tensor | None = None,
        teacher_logit_scale: float | Tensor | None = None,
        generator: torch.Generator | None = None,
        selection: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Shapes and errors as in :func:`fused_mfh_loss`."""
        return fused_mfh_loss(
            image_features,
            text_features,
            folds,
            logit_scale=logit_scale,
            teacher_image_features=teacher_image_features,
            teacher_text_features=teacher_text_features,
            teacher_logit_scale=teacher_logit_scale,
            hard_weight=self.hard_weight,
            rounds=self.rounds,
            generator=generator,
            selection=selection,
            reduction=self.reduction,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Show the hyper-parameters."""
        return (
            f"hard_weight={self.hard_weight}, rounds={self.rounds}, "
            f"reduction={self.reduction!r}, backend={self.backend!r}"
        )
