"""Any open_clip model as the dual encoder.

`--unfreeze all` trains the whole model; `top` locks all but the last group of layers of each tower
with open_clip's own `lock_image_tower` and `lock_text_tower`; `heads` freezes the model and trains
a linear map on top of each tower's features, which starts as the identity.
"""

from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from .config import Config, OptionError
from .dual_encoder import DualEncoder, Encoders
from .towers import TextProjection, TwoTowers


class OpenClipEncoder(DualEncoder):
    """An open_clip model, trained as it is."""

    def __init__(self, clip: Any, temperature: float) -> None:
        super().__init__(temperature, fresh=set())
        self.clip = clip

    def image_features(self, images: Tensor) -> Tensor:
        """Features (M, D) of pixels (M, 3, H, W)."""
        return self.clip.encode_image(images)

    def text_features(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """Features (N, D) of tokens (N, context length)."""
        return self.clip.encode_text(texts)


class ImageTower(nn.Module):
    """Pixels (M, 3, H, W) to features (M, D)."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Tensor) -> Tensor:
        """Encode the images."""
        return self.clip.encode_image(images)


class TextTower(nn.Module):
    """Tokens (N, context length) to features (N, D); the model finds the lengths itself."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """Encode the captions."""
        return self.clip.encode_text(texts)


def open_clip_encoders(config: Config) -> Encoders:
    """Build the open_clip model that --model and --pretrained name."""
    clip, preprocess = load_open_clip(config.model, config.pretrained)
    tokenizer = open_clip.get_tokenizer(config.model)

    def tokenize(text: str) -> Tensor:
        return tokenizer([text])[0]

    if config.unfreeze != "heads":
        if config.unfreeze == "top":
            lock_lower_layers(clip)
        return Encoders(OpenClipEncoder(clip, config.temperature), preprocess, tokenize, None, None)

    width = feature_width(clip, tokenize("a"))
    heads = nn.Linear(width, width, bias=False), TextProjection(width, width, bias=False)
    for head in heads:
        nn.init.eye_(head.weight)
    model = TwoTowers(*heads, config.temperature, fresh={"image_tower.", "text_tower."})
    trunks = ImageTower(clip).eval(), TextTower(clip).eval()
    return Encoders(model, preprocess, tokenize, *trunks)


def load_open_clip(name: str, pretrained: str) -> tuple:
    """open_clip model and its evaluation transform."""
    if name not in open_clip.list_models() and not name.startswith(("hf-hub:", "local-dir:")):
        raise OptionError(
            f"--model: open_clip has no {name!r}; 'packaged' or one of its list_models()"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained and pretrained not in tags and not Path(pretrained).is_file():
        raise OptionError(f"--pretrained: {pretrained!r} is no file and no tag of {name}: {tags}")
    clip, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained or None)
    # The dual encoder has its own temperature, at the paper's value.
    for unused in ("logit_scale", "logit_bias"):
        if isinstance(getattr(clip, unused, None), nn.Parameter):
            getattr(clip, unused).requires_grad_(False)
    return clip, preprocess


def lock_lower_layers(clip: Any) -> None:
    """Freeze all but each tower's last block and projection, which open_clip counts as two."""
    try:
        clip.lock_image_tower(unlocked_groups=2)
        clip.lock_text_tower(unlocked_layers=2)
    except AssertionError as error:
        raise OptionError(f"--unfreeze top: open_clip says: {error}; try all or heads") from error


def feature_width(clip: Any, tokens: Tensor) -> int:
    """Width of the model's shared space."""
    with torch.no_grad():
        return clip.eval().encode_text(tokens[None]).shape[-1]
