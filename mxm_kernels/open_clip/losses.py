"""The losses of ``open_clip.loss`` (2.32 to 3.3) with their signatures, and MFH in the same form.

In float32 the values are open_clip's to rounding. Under autocast, and with float16 or bfloat16
features, they differ in the fourth digit: open_clip rounds every logit to 16 bits, and these losses
keep products and sums in float32, so that they are nearer to the exact loss of the same features.

With ``world_size`` W > 1 a rank's value and the gradients that DDP averages are open_clip's. L is
the loss of the whole batch, L_r the mean over the rows of rank r, and dx_r the gradient that
reaches the features of rank r:

    local_loss  gather_with_grad  value  averaged gradients
    no          yes               L      dL
    yes         yes               L_r    dL
    no          no                L      dx_r / W, the scale's whole
    yes         no                L_r    each L_r alone, the other side's features held constant

The last two are open_clip's defaults: without the gradients of the other ranks the encoders learn
W times slower beside the scale, or from half of the terms. New work passes gather_with_grad=True.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mxm_kernels.checks import as_count
from mxm_kernels.distributed.ranks import SharedErrors, world_group
from mxm_kernels.losses import (
    fused_info_nce_loss,
    fused_mfh_loss,
    fused_siglip_loss,
    fused_soft_loss,
)
from mxm_kernels.losses.mfh import check_drawn
from mxm_kernels.open_clip.gathered import DIST_IMPLS, Gathered, check_teacher, no_gradient


class ClipLoss(Gathered):
    """``open_clip.loss.ClipLoss``: :func:`fused_info_nce_loss` of paired rows.

    The value is float32 whatever the features are. Of float32 features it is open_clip's to
    rounding. Of float16 and bfloat16 features, which autocast makes, it is nearer to the float64
    loss of the same features: open_clip rounds the logits to 16 bits. ``logit_bias`` is checked
    and changes nothing: the softmax does not depend on it, and its gradient is exactly 0.

    Args:
        local_loss (bool): return the mean over this rank's rows, not over the batch.
        gather_with_grad (bool): send gradients back to the ranks that the features came from.
        cache_labels (bool): taken for compatibility; there are no labels.
        rank (int): of this process in torch.distributed's default group.
        world_size (int): processes in it; 1 needs no torch.distributed.
        use_horovod (bool): must be False.

    Raises:
        ValueError: ``use_horovod``; or ``rank`` and ``world_size``, when called, are not those of
            torch.distributed.

    Example:
        >>> import torch
        >>> from mxm_kernels.open_clip import ClipLoss
        >>> losses = ClipLoss()(torch.eye(4), torch.eye(4), 20.0, output_dict=True)
        >>> losses["contrastive_loss"] < 1e-6
        tensor(True)
    """

    def forward(
        self,
        image_features,
        text_features,
        logit_scale,
        logit_bias=None,
        output_dict=False,
    ):
        """Loss of (B, D) image features and their (B, D) texts; a dictionary on request."""
        with SharedErrors(self._group()):
            nothing = no_gradient(logit_bias)
        loss = self._over_ranks(fused_info_nce_loss, image_features, text_features, logit_scale)
        loss = loss + nothing
        return {"contrastive_loss": loss} if output_dict else loss


class DistillClipLoss(Gathered):
    """``open_clip.loss.DistillClipLoss``: CLIP's loss, and :func:`fused_soft_loss` of a teacher.

    Example:
        >>> import torch
        >>> from mxm_kernels.open_clip import DistillClipLoss
        >>> x = torch.eye(4)
        >>> contrastive, distill = DistillClipLoss()(x, x, 20.0, x, x, 20.0)
        >>> distill < 1e-6
        tensor(True)
    """

    def forward(
        self,
        image_features,
        text_features,
        logit_scale,
        dist_image_features,
        dist_text_features,
        dist_logit_scale,
        output_dict=False,
    ):
        """Both losses, as a pair or a dictionary; the teacher (``dist_``) gets no gradient."""
        with SharedErrors(self._group()):
            check_teacher(dist_image_features, dist_text_features, dist_logit_scale)
        features = image_features, text_features, logit_scale
        contrastive = self._over_ranks(fused_info_nce_loss, *features)
        distill = self._over_ranks(
            fused_soft_loss,
            *features,
            teacher_image_features=dist_image_features,
            teacher_text_features=dist_text_features,
            teacher_logit_scale=dist_logit_scale,
        )
        if output_dict:
            return {"contrastive_loss": contrastive, "distill_loss": distill}
        return contrastive, distill


class MFHLoss(Gathered):
    """:func:`fused_mfh_loss` with the constructor and the call of open_clip's losses.

    Over several ranks the value is the loss of the whole batch and the gradients are its own:
    ``gather_with_grad`` must be True, and ``local_loss``, which saves open_clip memory, has
    nothing to save here.

    Args:
        local_loss (bool): as :class:`ClipLoss`, without effect.
        gather_with_grad (bool): must be True where ``world_size`` > 1.
        cache_labels (bool): as :class:`ClipLoss`.
        rank (int): as :class:`ClipLoss`.
        world_size (int): as :class:`ClipLoss`.
        use_horovod (bool): must be False.
        hard_weight: a, the share of the hard loss where there is a teacher.
        rounds: R >= 1 random selections, or None for their exact expectation.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> from mxm_kernels.open_clip import MFHLoss
        >>> images, texts = normalize(torch.randn(2, 8)), normalize(torch.randn(6, 8))
        >>> MFHLoss()(images, texts, torch.tensor(10.0), folds=(1, 3)).shape
        torch.Size([])
    """

    def __init__(
        self,
        local_loss=False,
        gather_with_grad=False,
        cache_labels=False,
        rank=0,
        world_size=1,
        use_horovod=False,
        hard_weight: float = 0.6,
        rounds: int | None = 10,
    ):
        super().__init__(local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod)
        check_drawn(hard_weight, rounds)
        if self.world_size > 1 and not gather_with_grad:
            raise ValueError(
                f"gather_with_grad must be True with world_size={world_size}: without the other "
                "ranks' gradients it is not MFH; open_clip's program takes --gather-with-grad"
            )
        self.hard_weight = hard_weight
        self.rounds = rounds

    def forward(
        self,
        image_features,
        text_features,
        logit_scale,
        logit_bias=None,
        folds=None,
        dist_image_features=None,
        dist_text_features=None,
        dist_logit_scale=None,
        output_dict=False,
        generator=None,
    ):
        """Loss of (M, D) images and (N, D) texts; ``folds`` say which show the same instance.

        They and ``generator`` are those of :func:`fused_mfh_loss`.
        Momentum or teacher features come as ``dist_*``, the names that open_clip's program
        gives to those of ``--distill-model``.
        """
        group = self._group()
        with SharedErrors(group):
            if folds is None:
                raise TypeError(
                    "MFHLoss needs folds, the rows that show the same instance: Folds, a pair "
                    "(views, captions) or a pair (image_ids, text_ids)"
                )
            check_teacher(dist_image_features, dist_text_features, dist_logit_scale)
            nothing = no_gradient(logit_bias)
        loss = fused_mfh_loss(
            image_features,
            text_features,
            folds,
            logit_scale=logit_scale,
            hard_weight=self.hard_weight,
            rounds=self.rounds,
            generator=generator,
            teacher_image_features=dist_image_features,
            teacher_text_features=dist_text_features,
            teacher_logit_scale=dist_logit_scale,
            process_group=group,
        )
        loss = loss + nothing
        return {"contrastive_loss": loss} if output_dict else loss


class SigLipLoss(nn.Module):
    """``open_clip.loss.SigLipLoss``: :func:`fused_siglip_loss` of paired rows.

    Over several ranks the value is that of this rank's images with all texts, and the averaged
    gradients are those of the whole batch, as in open_clip.

    Args:
        cache_labels (bool): taken for compatibility; there are no labels.
        rank (int): of this process in torch.distributed's default group.
        world_size (int): processes in it.
        dist_impl: "bidir" (the default) and "shift" pass the texts around a ring, "gather" and
            "reduce" gather them at once. The results are the same.

    Raises:
        ValueError: ``dist_impl`` is another one; or as :class:`ClipLoss`.

    Example:
        >>> import torch
        >>> from mxm_kernels.open_clip import SigLipLoss
        >>> SigLipLoss()(torch.eye(4), torch.eye(4), 20.0, -10.0) < 1e-3
        tensor(True)
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
    ):
        super().__init__()
        self.cache_labels = cache_labels
        self.rank = as_count("rank", rank, 0)
        self.world_size = as_count("world_size", world_size)
        self.dist_impl = dist_impl or "bidir"
        if self.dist_impl not in DIST_IMPLS:
            raise ValueError(f"dist_impl must be one of {', '.join(DIST_IMPLS)}, got {dist_impl!r}")
        self._gather = DIST_IMPLS[self.dist_impl]

    def forward(self, image_features, text_features, logit_scale, logit_bias, output_dict=False):
        """Loss of (B, D) image features and their (B, D) texts; a bias of None is 0."""
        options: dict[str, Any] = {
            "logit_scale": logit_scale,
            "logit_bias": 0.0 if logit_bias is None else logit_bias,
        }
        if self.world_size == 1:
            loss = fused_siglip_loss(image_features, text_features, **options)
        else:
            group = world_group(self.rank, self.world_size)
            rows, _ = fused_siglip_loss(
                image_features,
                text_features,
                process_group=group,
                gather=self._gather,
                reduction="none",
                **options,
            )
            loss = rows.mean()
        return {"contrastive_loss": loss} if output_dict else loss
