"""A dual encoder, and what stands in front of it."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

Unfreeze = Literal["top", "all", "heads"]
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
        self, images: nn.Module, texts: nn.Module, temperature: float, fresh: Iterable[str] = ()
    ) -> None:
        super().__init__(temperature, fresh)
        self.image_tower, self.text_tower = images, texts


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
