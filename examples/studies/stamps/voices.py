"""Image, text and voice: what Symile makes of the third beside pairwise losses.

A tuple is an image, its description in one of six languages, and the same description spoken.
Encoders are trained on the tuples of some stamps, and images of other stamps are looked up with
text and voice together. The pairwise losses add their two similarities; Symile multiplies the
three features entry by entry, as it is trained.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from docs.recipes.more_modalities import symile_loss
from examples.studies.protocol.runs import PRIMARY, Run
from mxm_kernels import fused_info_nce_loss

from .features import StampSet
from .training import WIDTH, WITHIN, Encoder, bags

CHANNELS = 64
VOICE_RATE = 0.05  # of the rate of the other encoders: convolutions take smaller steps
Loss = Literal["text alone", "pairwise", "symile"]
LOSSES: tuple[Loss, ...] = ("text alone", "pairwise", "symile")


@dataclass(frozen=True)
class Voices:
    """Spoken captions: voice i says caption ``captions[i]``."""

    sounds: Tensor  # (V, BANDS, FRAMES) float16
    captions: Tensor  # (V,) int64, row of StampSet


@dataclass(frozen=True)
class VoiceSetting:
    """What is trained, and how much of it."""

    loss: Loss
    splits: int
    stamps: int = 64
    steps: int = 100


class Hearing(nn.Module):
    """An encoder of images and captions, and beside it one of voices."""

    def __init__(self, components: int, bands: int, temperature: float) -> None:
        super().__init__()
        self.pair = Encoder(components, temperature)
        widths = (bands, CHANNELS, CHANNELS, CHANNELS)
        layers = [
            layer
            for before, after in pairwise(widths)
            for layer in (nn.Conv1d(before, after, 5, stride=2), nn.ReLU())
        ]
        self.voices = nn.Sequential(*layers, nn.AdaptiveMaxPool1d(1), nn.Flatten())
        self.voice_head = nn.Linear(CHANNELS, WIDTH, bias=False)

    def forward(
        self, images: Tensor, texts: tuple[Tensor, Tensor], sounds: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised features (B, WIDTH) of images, captions and voices."""
        return (
            self.pair.encode_images(images),
            self.pair.encode_texts(*texts),
            normalize(self.voice_head(self.voices(sounds.float())), dim=-1),
        )


def loss_of(
    loss: Loss, features: Sequence[Tensor], scale: Tensor, generator: torch.Generator
) -> Tensor:
    """Loss of a batch of tuples, from the features (B, WIDTH) of its modalities."""
    image, text, voice = features
    if loss == "symile":
        return symile_loss(features, logit_scale=scale, generator=generator)
    pairs = [(image, text), (image, voice), (text, voice)]
    kept = pairs[:1] if loss == "text alone" else pairs
    terms = [fused_info_nce_loss(a, b, (1, 1), logit_scale=scale) for a, b in kept]
    return torch.stack(terms).mean()


def scores(loss: Loss, images: Tensor, texts: Tensor, voices: Tensor) -> Tensor:
    """How well each text with its voice fits each image: (N, M)."""
    if loss == "symile":
        return (texts * voices) @ images.T
    return (texts if loss == "text alone" else texts + voices) @ images.T


def train(
    setting: VoiceSetting, data: StampSet, voices: Voices, rows: Tensor, run: Run
) -> tuple[Hearing, float]:
    """Train on some voices; returns the encoders and the processor seconds of the loop."""
    torch.manual_seed(run.seed)
    model = Hearing(data.images.shape[-1], voices.sounds.shape[1], run.point.temperature)
    slow = [*model.voices.parameters(), *model.voice_head.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": model.pair.parameters()},
        {"params": slow, "lr": VOICE_RATE * run.point.lr},
    ]
    optimizer = torch.optim.Adam(groups, lr=run.point.lr, fused=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=setting.steps)
    generator = torch.Generator().manual_seed(run.seed)
    start = time.process_time()
    for _ in range(setting.steps):
        order = rows[torch.randperm(len(rows), generator=generator)]
        chosen = one_each(order, data.stamps[voices.captions[order]])[: setting.stamps]
        side = torch.randint(data.images.shape[1], (len(chosen),), generator=generator)
        features = encode(model, data, voices, chosen, side)
        loss = loss_of(setting.loss, features, model.pair.logit_scale, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cosine.step()
    return model.eval(), time.process_time() - start


def one_each(rows: Tensor, stamps: Tensor) -> Tensor:
    """The first row of each stamp, in their order."""
    first = torch.full((int(stamps.max()) + 1,), len(rows))
    first.scatter_reduce_(0, stamps, torch.arange(len(rows)), "amin")
    return rows[first[first < len(rows)].sort().values]


def encode(
    model: Hearing, data: StampSet, voices: Voices, rows: Tensor, side: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Features of some voices, their captions and their images."""
    captions = voices.captions[rows]
    images = data.images[data.stamps[captions], side]
    return model(images, bags(data, captions), voices.sounds[rows])


@torch.no_grad()
def evaluate(
    setting: VoiceSetting, model: Hearing, data: StampSet, voices: Voices, rows: Tensor
) -> dict[str, float]:
    """Recall of the image in percent, among those of the stamps of these voices."""
    _, texts, sounds = encode(model, data, voices, rows, torch.zeros(len(rows), dtype=torch.long))
    gallery, own = data.stamps[voices.captions[rows]].unique(return_inverse=True)
    images = model.pair.encode_images(data.images[gallery, 0])
    found = scores(setting.loss, images, texts, sounds)
    ahead = (found > found.gather(1, own[:, None])).sum(1)
    recalls = {f"R@{k}": 100 * float((ahead < k).float().mean()) for k in WITHIN}
    return {PRIMARY: sum(recalls.values()) / len(recalls), **recalls}
