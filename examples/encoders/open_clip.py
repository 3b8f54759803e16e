"""Any open_clip model as the dual encoder.

`unfreeze="all"` trains the whole model; "top" locks all but the last group of layers of each tower
with open_clip's own `lock_image_tower` and `lock_text_tower`; "heads" freezes the model and trains
a linear map on top of each tower's features, which starts as the identity.
"""

from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from ..errors import OptionError
from .dual import DualEncoder, Encoders, TwoTowers, Unfreeze
from .packaged import TextProjection


class OpenClipEncoder(DualEncoder):
    """An open_clip model, trained as it is, or the frozen trunk of its heads."""

    def __init__(self, clip: Any, temperature: float) -> None:
        super().__init__(temperature)
        self.clip = clip

    def image_tower(self, images: Tensor) -> Tensor:
        """Features (M, D) of pixels (M, 3, H, W)."""
        return self.clip.encode_image(images)

    def text_tower(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """Features (N, D) of tokens (N, context length); the model finds the lengths itself."""
        return self.clip.encode_text(texts)


def open_clip_encoders(
    name: str, pretrained: str, unfreeze: Unfreeze, temperature: float
) -> Encoders:
    """Build an open_clip model; `pretrained` is a tag of it, a file of weights, or empty."""
    try:
        clip, preprocess = load_open_clip(name, pretrained)
        tokenizer = open_clip.get_tokenizer(name)
    except OptionError:
        raise
    except Exception as error:  # of a file, a hub or a model's parts: libraries of all kinds
        wrong = f"--pretrained {pretrained}" if pretrained else f"--model {name}"
        raise OptionError(f"{wrong}: open_clip cannot load it: {error}") from error

    def tokenize(text: str) -> Tensor:
        return tokenizer([text])[0]

    whole = OpenClipEncoder(clip, temperature)
    if unfreeze == "top":
        lock_lower_layers(clip)
    if unfreeze != "heads":
        return Encoders(whole, preprocess, tokenize)
    with torch.no_grad():
        width = clip.eval().encode_text(tokenize("a")[None]).shape[-1]
    heads = nn.Linear(width, width, bias=False), TextProjection(width, width, bias=False)
    for head in heads:
        nn.init.eye_(head.weight)
    model = TwoTowers(*heads, temperature, fresh=("image_tower.", "text_tower."))
    return Encoders(model, preprocess, tokenize, whole)


def load_open_clip(name: str, pretrained: str) -> tuple:
    """open_clip model and its evaluation transform."""
    if name not in open_clip.list_models() and not name.startswith(("hf-hub:", "local-dir:")):
        known = "'packaged' or one of its list_models()"
        raise OptionError(f"--model: open_clip has no {name!r}; {known}")
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
