"""``open_clip.loss.CoCaLoss`` with its contrastive part fused."""

from __future__ import annotations

import torch
from torch import nn

from mxm_kernels.losses import fused_info_nce_loss
from mxm_kernels.open_clip.gathered import Gathered


class CoCaLoss(Gathered):
    """``open_clip.loss.CoCaLoss``: CLIP's loss, and the cross-entropy of the captions' tokens.

        clip_loss_weight * InfoNCE    and    caption_loss_weight * cross-entropy

    (CoCa, arXiv 2205.01917, equation 4). The first is :func:`fused_info_nce_loss`, float32
    whatever the features are. The second is PyTorch's: its logits come from the model. Over
    several ranks the first is that of :class:`ClipLoss`, the second the mean over the tokens of
    this rank.

    Args:
        caption_loss_weight (float): factor of the cross-entropy.
        clip_loss_weight (float): factor of CLIP's loss. With 0 that is not computed, and the
            value is an integer 0.
        pad_id (int): the token that the cross-entropy leaves out.
        local_loss (bool): as :class:`ClipLoss`.
        gather_with_grad (bool): as :class:`ClipLoss`.
        cache_labels (bool): as :class:`ClipLoss`.
        rank (int): as :class:`ClipLoss`.
        world_size (int): as :class:`ClipLoss`.
        use_horovod (bool): must be False.

    Raises:
        ValueError: as :class:`ClipLoss`.

    Example:
        >>> import torch
        >>> from mxm_kernels.open_clip import CoCaLoss
        >>> x = torch.eye(4)
        >>> logits, tokens = torch.zeros(4, 7, 10), torch.ones(4, 7, dtype=torch.long)
        >>> clip, caption = CoCaLoss(2.0, 1.0)(x, x, logits, tokens, 20.0)
        >>> caption  # twice the logarithm of 10 tokens, which are equally likely
        tensor(4.6052)
    """

    def __init__(
        self,
        caption_loss_weight,
        clip_loss_weight,
        pad_id=0,
        local_loss=False,
        gather_with_grad=False,
        cache_labels=False,
        rank=0,
        world_size=1,
        use_horovod=False,
    ):
        super().__init__(local_loss, gather_with_grad, cache_labels, rank, world_size, use_horovod)
        self.clip_loss_weight = clip_loss_weight
        self.caption_loss_weight = caption_loss_weight
        self.caption_loss = nn.CrossEntropyLoss(ignore_index=pad_id)

    def forward(
        self, image_features, text_features, logits, labels, logit_scale, output_dict=False
    ):
        """Both losses of (B, D) images and texts, as a pair or a dictionary.

        ``logits`` are (B, L, V), of V tokens in L places, and ``labels`` (B, L) their tokens.
        """
        clip = torch.tensor(0, device=logits.device)
        if self.clip_loss_weight:
            features = image_features, text_features, logit_scale
            clip = self.clip_loss_weight * self._over_ranks(fused_info_nce_loss, *features)
        caption = self.caption_loss_weight * self.caption_loss(logits.permute(0, 2, 1), labels)
        if output_dict:
            return {"contrastive_loss": clip, "caption_loss": caption}
        return clip, caption
