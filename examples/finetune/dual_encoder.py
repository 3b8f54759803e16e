"""The trainable dual encoder, and the frozen stages in front of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize


class DualEncoder(nn.Module):
    """What is trained: two encoders of one space, and the temperature.

    A subclass gives `image_features` and `text_features`.

    Args:
        temperature: of the similarities at the start.
        fresh: prefixes of the names of parameters that start from noise and take the larger rate.

    """

    def __init__(self, temperature: float, fresh: set[str]) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.fresh = {"log_scale", *fresh}

    def image_features(self, images: Tensor) -> Tensor:
        """Features (M, D) of image inputs (M, ...)."""
        raise NotImplementedError

    def text_features(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """Features (N, D) of text inputs (N, L, ...) and their lengths (N,)."""
        raise NotImplementedError

    @property
    def logit_scale(self) -> Tensor:
        """Inverse temperature, at most 100 as in CLIP."""
        return self.log_scale.exp().clamp(max=100.0)

    def encode_images(self, images: Tensor) -> Tensor:
        """L2-normalised features (M, D)."""
        return normalize(self.image_features(images).float(), dim=-1)

    def encode_texts(self, texts: Tensor, lengths: Tensor) -> Tensor:
        """L2-normalised features (N, D)."""
        return normalize(self.text_features(texts, lengths).float(), dim=-1)

    def forward(self, images: Tensor, texts: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Image features (M, D), text features (N, D) and the logit scale."""
        return self.encode_images(images), self.encode_texts(texts, lengths), self.logit_scale

    def train(self, mode: bool = True) -> "DualEncoder":
        """Switch to training, except for batch norm.

        Batch norm keeps the pretrained statistics: a batch of a few hundred drawings is no sample
        of what they describe, the images of one instance are not independent, and the teacher,
        which averages parameters only, stays exact.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def parameter_groups(self, lr: float, head_lr: float) -> list[dict]:
        """Trainable parameters in two groups of the optimiser: pretrained and fresh."""
        groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[any(name.startswith(p) for p in self.fresh)].append(parameter)
        rates = {False: lr, True: head_lr}
        return [{"params": p, "lr": rates[fresh]} for fresh, p in groups.items() if p]


@dataclass
class Encoders:
    """A dual encoder with what stands in front of it.

    The transforms make the raw input of one image or caption. The trunks, where there are any,
    map batches of these, (B, 3, H, W) and ((B, L), lengths (B,)), to the activations that the
    dual encoder takes.
    """

    model: DualEncoder
    image_transform: Callable[[Image.Image], Tensor]
    tokenize: Callable[[str], Tensor]
    image_trunk: nn.Module | None
    text_trunk: nn.Module | None
