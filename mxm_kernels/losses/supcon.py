"""SupCon: a loss of all positives of a row at once."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels import checks
from mxm_kernels.core import formulas
from mxm_kernels.core.batch import make_batch, require_folds
from mxm_kernels.core.options import FoldsLike, HyperParameters, Inputs, Options, Scale
from mxm_kernels.core.pair_weights import expected_weights, local_weights
from mxm_kernels.core.row_losses import loss_of
from mxm_kernels.losses.loss_function import loss_function
from mxm_kernels.losses.module import Loss


def check_positives(positives: str = "out", pair_weights: object = None) -> None:
    """Check ``positives``, and that ``pair_weights`` are given with "out" only."""
    checks.check_choice("positives", positives, ("out", "in"))
    if positives == "in" and pair_weights is not None:
        raise TypeError('positives="in" takes no pair_weights: it sums inside the logarithm')


@loss_function(check_positives)
def fused_supcon_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike,
    *,
    logit_scale: Scale,
    positives: Literal["out", "in"] = "out",
    **options: Unpack[Options],
) -> Tensor:
    """Supervised contrastive loss (SupCon): all positives of a row at once.

        "out"   l_i = logaddexp(n_i, p_i) - mean_{k in Pos(i)} S_ik     mean of the logarithms
        "in"    l_i = softplus(n_i - p_i)                               logarithm of the sum

    with p_i = logsumexp_{k in Pos(i)} S_ik (arXiv 2004.11362, equations 2 and 3; S, Pos and n_i
    as in :func:`fused_mfh_loss`). "out" asks every positive to be near, "in" one of them. "in"
    here leaves out the paper's constant log |Pos(i)|.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: which rows show the same instance, as in :func:`fused_mfh_loss`.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        positives: "out" or "in": the sum over the positives is outside or inside of the logarithm.
        **options: see :class:`Options`; "in" takes no ``pair_weights``.

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from mxm_kernels import fused_supcon_loss
        >>> images, texts = torch.eye(4)[:2], torch.eye(4)  # 1 view, 2 captions
        >>> bool(fused_supcon_loss(images, texts, (1, 2), logit_scale=2.0) > 0)
        True
    """
    require_folds(folds)
    batch = make_batch(image_features, text_features, folds, logit_scale, options)
    if positives == "in":
        return loss_of(batch, formulas.supcon_in)
    return loss_of(batch, formulas.supcon_out, local_weights(batch, expected_weights))


class SupConLoss(Loss):
    """:func:`fused_supcon_loss` as a module, with its hyper-parameters fixed.

    Args:
        positives: "out" or "in": the sum over the positives is outside or inside of the logarithm.
        **options: see :class:`HyperParameters`.

    Example:
        >>> from mxm_kernels import SupConLoss
        >>> SupConLoss("in")
        SupConLoss(positives='in')
    """

    function = staticmethod(fused_supcon_loss)

    def __init__(
        self, positives: Literal["out", "in"] = "out", **options: Unpack[HyperParameters]
    ) -> None:
        super().__init__({"positives": positives}, options)

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
