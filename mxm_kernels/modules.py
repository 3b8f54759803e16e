"""The public losses as modules: they hold hyper-parameters and nothing else.

Every module is a function of ``functional`` with its hyper-parameters fixed by the constructor,
which also takes those of :class:`HyperParameters`; ``forward`` takes the tensors and the options
of :class:`Inputs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from mxm_kernels import checks, functional
from mxm_kernels.functional.info_nce import check_flag
from mxm_kernels.functional.mfh import check_hard
from mxm_kernels.options import (
    FoldsLike,
    HyperParameters,
    Inputs,
    Scale,
    check_fraction,
    check_hyper_parameters,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _Loss(nn.Module):
    """A function with some of its arguments fixed; no parameters, no state."""

    def __init__(
        self, function: Callable[..., Tensor], own: dict[str, Any], shared: HyperParameters
    ) -> None:
        super().__init__()
        check_hyper_parameters(shared, tuple(HyperParameters.__annotations__))
        self._function = function
        self.hyper_parameters: dict[str, Any] = {**own, **shared}

    def extra_repr(self) -> str:
        """Show the hyper-parameters."""
        return ", ".join(f"{name}={value!r}" for name, value in self.hyper_parameters.items())

    def _run(self, *features: Any, **inputs: Any) -> Tensor:
        return self._function(*features, **self.hyper_parameters, **inputs)


class _DrawnLoss(_Loss):
    """A loss whose positives are drawn: a generator or a selection comes with the batch."""

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        folds: FoldsLike,
        *,
        logit_scale: Scale,
        generator: torch.Generator | None = None,
        selection: tuple[Tensor, Tensor] | None = None,
        **inputs: Unpack[Inputs],
    ) -> Tensor:
        """Shapes, options and errors as in the function."""
        return self._run(
            image_features,
            text_features,
            folds,
            logit_scale=logit_scale,
            generator=generator,
            selection=selection,
            **inputs,
        )


class _PairedLoss(_Loss):
    """A loss of paired rows, which may say which of them show the same instance."""

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        folds: FoldsLike | None = None,
        *,
        logit_scale: Scale,
        **inputs: Unpack[Inputs],
    ) -> Tensor:
        """Shapes, options and errors as in the function."""
        return self._run(image_features, text_features, folds, logit_scale=logit_scale, **inputs)


class MFHLoss(_DrawnLoss):
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
        super().__init__(functional.fused_mfh_loss, own, options)


class HardLoss(_DrawnLoss):
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
        super().__init__(functional.fused_hard_loss, {"rounds": rounds}, options)


class SoftLoss(_PairedLoss):
    """:func:`fused_soft_loss` with its hyper-parameters fixed.

    Args:
        **options: see :class:`HyperParameters`.

    Example:
        >>> from mxm_kernels import SoftLoss
        >>> SoftLoss(image_to_text_weight=0.75)
        SoftLoss(image_to_text_weight=0.75)
    """

    def __init__(self, **options: Unpack[HyperParameters]) -> None:
        super().__init__(functional.fused_soft_loss, {}, options)


class InfoNCELoss(_PairedLoss):
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
        super().__init__(functional.fused_info_nce_loss, own, options)


class DecoupledLoss(_PairedLoss):
    """:func:`fused_decoupled_loss` with its hyper-parameters fixed.

    Args:
        **options: see :class:`HyperParameters`.

    Example:
        >>> from mxm_kernels import DecoupledLoss
        >>> DecoupledLoss(reduction="none")
        DecoupledLoss(reduction='none')
    """

    def __init__(self, **options: Unpack[HyperParameters]) -> None:
        super().__init__(functional.fused_decoupled_loss, {}, options)


class DebiasedLoss(_PairedLoss):
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
        super().__init__(functional.fused_debiased_loss, own, options)


class SelfDistillationLoss(_Loss):
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
        super().__init__(functional.fused_self_distillation_loss, {}, options)

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


class SupConLoss(_Loss):
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
        super().__init__(functional.fused_supcon_loss, {"positives": positives}, options)

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


class SigLipLoss(_Loss):
    """:func:`fused_siglip_loss` with its hyper-parameters fixed.

    Args:
        **options: see :class:`HyperParameters`; without ``soft_weight`` and ``label_smoothing``.

    Example:
        >>> import torch
        >>> from mxm_kernels import SigLipLoss
        >>> x = torch.eye(4)
        >>> bool(SigLipLoss()(x, x, logit_scale=20.0, logit_bias=-10.0) < 1e-3)
        True
    """

    def __init__(self, **options: Unpack[HyperParameters]) -> None:
        for name in ("soft_weight", "label_smoothing"):
            if name in options:
                raise TypeError(f"SigLipLoss takes no {name}")
        super().__init__(functional.fused_siglip_loss, {}, options)

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


class CWCLLoss(_Loss):
    """:func:`fused_cwcl_loss` with its hyper-parameters fixed.

    Args:
        **options: see :class:`HyperParameters`; without ``soft_weight`` and ``label_smoothing``.

    Example:
        >>> from mxm_kernels import CWCLLoss
        >>> CWCLLoss(image_to_text_weight=1.0)
        CWCLLoss(image_to_text_weight=1.0)
    """

    def __init__(self, **options: Unpack[HyperParameters]) -> None:
        for name in ("soft_weight", "label_smoothing"):
            if name in options:
                raise TypeError(f"CWCLLoss takes no {name}")
        super().__init__(functional.fused_cwcl_loss, {}, options)

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


class IntraModalLoss(_Loss):
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
                       backend=None)
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
        shared: HyperParameters = {"reduction": reduction, "backend": backend}
        if process_group is not None:
            shared["process_group"], shared["gather"] = process_group, gather
        super().__init__(functional.fused_intra_modal_loss, own, shared)

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
