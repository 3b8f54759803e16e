"""Token sequences of a dual encoder of examples/encoders: any open_clip model, or the packaged one.

CMA-CLIP needs what CLIP throws away: the patches and words of its last layer. Where a tower ends
in a linear projection to the joint space, its tokens go through that projection too, so that they
have the width of the features (512 for ViT-B/32, the paper's d); else they keep their own width.
"""

from typing import Any

import torch
from einops import rearrange, reduce
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import text_global_pool
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from examples.encoders.dual import DualEncoder, TwoTowers
from examples.encoders.open_clip import OpenClipEncoder
from examples.encoders.packaged import MeanPool, padding_mask
from examples.errors import OptionError

from .tokens import Tokens


class TokenEncoder(nn.Module):
    """A dual encoder that gives its tokens; a subclass says how.

    Args:
        dual: the dual encoder, which keeps its parameters, temperature and batch norm rules.
        image_width: width of the image tokens.
        text_width: width of the text tokens.

    """

    def __init__(self, dual: DualEncoder, image_width: int, text_width: int) -> None:
        super().__init__()
        self.dual: Any = dual  # a subclass knows its kind
        self.image_width, self.text_width = image_width, text_width
        # What `--unfreeze` keeps frozen stays frozen when a stage releases the encoders.
        self.locked = frozenset(n for n, p in self.named_parameters() if not p.requires_grad)

    def encode_images(self, images: Tensor) -> Tokens:
        """Tokens of image inputs (M, ...)."""
        raise NotImplementedError

    def encode_texts(self, texts: Tensor, lengths: Tensor) -> Tokens:
        """Tokens of text inputs (N, L, ...) and their lengths (N,)."""
        raise NotImplementedError

    def release(self, released: bool) -> None:
        """Let the encoders learn, or freeze them."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(released and name not in self.locked)

    @property
    def logit_scale(self) -> Tensor:
        """Inverse temperature of the contrastive loss."""
        return self.dual.logit_scale


class OpenClipTokens(TokenEncoder):
    """Patches and words of an open_clip model, by its `forward_intermediates`.

    Vision towers without a class token (convolutional ones, SigLIP's) take the mean of their
    patches for it, Hugging Face text towers the mean of their words. A text transformer's class
    token is the one that it pools: the end of text in CLIP.
    """

    def __init__(self, dual: OpenClipEncoder) -> None:
        clip = dual.clip
        if getattr(clip.visual, "attn_pool", None) is not None:
            raise OptionError(
                "--model: towers with attentional pooling (CoCa) have no patches in the width "
                "of their last norm; take a model without"
            )
        visual, text = image_projection(clip.visual), text_projection(clip)
        widths = (visual_width(clip.visual), text_width(clip))
        super().__init__(
            dual,
            widths[0] if visual is None else visual.shape[0],
            widths[1] if text is None else text.shape[0],
        )
        if isinstance(text_tower(clip), HFTextEncoder):
            text_tower(clip).output_tokens = True

    @property
    def clip(self) -> Any:
        """The open_clip model."""
        return self.dual.clip

    def encode_images(self, images: Tensor) -> Tokens:
        """Tokens of pixels (M, 3, H, W)."""
        prefix = has_class_token(self.clip.visual)
        output = self.clip.visual.forward_intermediates(
            images,
            indices=1,
            normalize_intermediates=True,
            output_fmt="NCHW",
            output_extra_tokens=prefix,
        )
        patches = rearrange(output["image_intermediates"][-1], "m c h w -> m (h w) c")
        before = output["image_intermediates_prefix"][-1] if prefix else patches
        class_token = reduce(before, "m p c -> m c", "mean")  # p is 1, or all patches
        weight = image_projection(self.clip.visual)
        if weight is not None:
            class_token, patches = linear(class_token, weight), linear(patches, weight)
        mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        return Tokens(class_token, patches, mask, unit(output["image_features"]))

    def encode_texts(self, texts: Tensor, lengths: Tensor) -> Tokens:
        """Tokens of token ids (N, context length)."""
        tower = text_tower(self.clip)
        if isinstance(tower, HFTextEncoder):
            features, words = tower(texts)
            mask = texts[:, -words.shape[1] :] != tower.config.pad_token_id
            return Tokens(MeanPool()(words, mask.sum(1)), words, mask, unit(features))
        output = self.clip.forward_intermediates(
            text=texts,
            text_indices=1,
            normalize=False,
            normalize_intermediates=True,
            text_output_extra_tokens=True,
        )
        words = output["text_intermediates"][-1]
        if "text_intermediates_suffix" in output:
            class_token = output["text_intermediates_suffix"][-1][:, 0]
            mask = texts[:, : words.shape[1]] != tower.pad_id
        else:
            class_token, mask = self.pooled(words, texts)
        weight = text_projection(self.clip)
        if weight is not None:
            class_token, words = linear(class_token, weight), linear(words, weight)
        return Tokens(class_token, words, mask, unit(output["text_features"]))

    def pooled(self, words: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Class token (N, C) as open_clip pools it, and which other tokens (N, L) are words."""
        tower = text_tower(self.clip)
        kind = getattr(tower, "text_pool_type", None) or tower.pool_type
        end = getattr(tower, "text_eos_id", None) or getattr(tower, "eos_id", None)
        places = torch.arange(texts.shape[1], device=texts.device).expand_as(texts)
        index = text_global_pool(places[..., None], texts, kind, eos_token_id=end)
        if kind in ("argmax", "eos"):
            mask = places < index
        else:
            mask = (texts != getattr(tower, "pad_id", 0)) & (places != index)
        return text_global_pool(words, texts, kind, eos_token_id=end), mask


class PackagedTokens(TokenEncoder):
    """EfficientNet's feature-map cells as patches, MiniLM's hidden states as words.

    Neither network has a trained class token; the means that its features are made of stand for
    it. With `--unfreeze top` the inputs are the activations of the frozen lower layers.
    """

    def __init__(self, dual: TwoTowers) -> None:
        towers: tuple[Any, Any] = dual.image_tower, dual.text_tower
        if not isinstance(towers[0], nn.Sequential) or len(towers[0]) < 3:
            raise OptionError(
                "--unfreeze heads pools in the trunk and leaves no tokens; expected top or all"
            )
        super().__init__(dual, *(tower[-1].out_features for tower in towers))

    def encode_images(self, images: Tensor) -> Tokens:
        """Tokens of pixels or activations (M, C, H, W)."""
        *stages, pool, head = self.dual.image_tower
        for stage in stages:
            images = stage(images)
        pooled, cells = head(pool(images)), head(rearrange(images, "m c h w -> m (h w) c"))
        mask = torch.ones(cells.shape[:2], dtype=torch.bool, device=cells.device)
        return Tokens(pooled, cells, mask, unit(pooled))

    def encode_texts(self, texts: Tensor, lengths: Tensor) -> Tokens:
        """Tokens of token ids (N, L) or hidden states (N, L, H), and their lengths (N,)."""
        *stages, pool, head = self.dual.text_tower
        for stage in stages:
            texts = stage(texts, lengths)
        pooled = head(pool(texts, lengths))
        return Tokens(pooled, head(texts), padding_mask(lengths, texts.shape[1]), unit(pooled))


def token_encoder(dual: DualEncoder) -> TokenEncoder:
    """Token encoder of a dual encoder of examples/encoders."""
    if isinstance(dual, OpenClipEncoder):
        return OpenClipTokens(dual)
    if isinstance(dual, TwoTowers):
        return PackagedTokens(dual)
    raise TypeError(f"dual must be an OpenClipEncoder or TwoTowers, got {type(dual).__name__}")


def unit(features: Tensor) -> Tensor:
    """L2-normalised features in float32."""
    return normalize(features.float(), dim=-1)


def text_tower(clip: Any) -> Any:
    """The module that holds the text tower: CLIP itself keeps its parts."""
    return getattr(clip, "text", clip)


def has_class_token(visual: Any) -> bool:
    """Whether a vision tower has a class token that its intermediates come with."""
    if isinstance(visual, TimmModel):
        return getattr(visual.trunk, "num_prefix_tokens", 0) > 0
    return hasattr(visual, "class_embedding")


def image_projection(visual: Any) -> Tensor | None:
    """Weight (D, C) of the projection that ends a vision transformer."""
    projection = getattr(visual, "proj", None)
    return projection.mT if isinstance(projection, Tensor) else None


def text_projection(clip: Any) -> Tensor | None:
    """Weight (D, C) of the projection that ends a text transformer."""
    projection = getattr(text_tower(clip), "text_projection", None)
    if isinstance(projection, nn.Linear):
        return projection.weight
    return projection.mT if isinstance(projection, Tensor) else None


@torch.no_grad()
def visual_width(visual: Any) -> int:
    """Channels of a vision tower's last feature map."""
    size = visual.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    device = next(visual.parameters()).device
    training = visual.training
    visual.eval()
    output = visual.forward_intermediates(
        torch.zeros(1, 3, height, width, device=device), indices=1, intermediates_only=True
    )
    visual.train(training)
    return output["image_intermediates"][-1].shape[1]


def text_width(clip: Any) -> int:
    """Width of a text tower's hidden states."""
    tower = text_tower(clip)
    if isinstance(tower, HFTextEncoder):
        return tower.config.hidden_size
    return tower.transformer.width
