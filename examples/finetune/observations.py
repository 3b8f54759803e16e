"""Run the frozen trunks once over a split, and keep their activations in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .data.instances import ImageSource, Instance
from .data.multifold import LazyInputs, Observations, flatten, pad_texts
from .dual_encoder import Encoders

CHUNK = 64


@dataclass
class Material:
    """Inputs that do not depend on what is trained, so that several runs can share them."""

    instances: list[Instance]  # of the evaluated split
    train: Observations
    evaluation: Observations


def observe(
    instances: Sequence[Instance], encoders: Encoders, device: Any = "cpu", progress: bool = True
) -> Observations:
    """Model inputs of the images and captions of some instances."""
    sources, image_ids = flatten([instance.images for instance in instances])
    captions, text_ids = flatten([instance.captions for instance in instances])
    images: Sequence[Tensor] = LazyInputs(sources, encoders.image_transform)
    if encoders.image_trunk is not None:
        images = run_image_trunk(sources, encoders, device, progress)
    texts: list[Tensor] = [encoders.tokenize(caption) for caption in captions]
    if encoders.text_trunk is not None:
        texts = run_text_trunk(texts, encoders, device, progress)
    return Observations(images, texts, image_ids, text_ids)


@torch.no_grad()
def run_image_trunk(
    sources: Sequence[ImageSource], encoders: Encoders, device: Any, progress: bool
) -> list[Tensor]:
    """Activations of every image, on the CPU."""
    assert encoders.image_trunk is not None
    trunk = encoders.image_trunk.to(device)
    outputs: list[Tensor] = []
    for start in tqdm(range(0, len(sources), CHUNK), "images", disable=not progress):
        chunk = sources[start : start + CHUNK]
        pixels = torch.stack([encoders.image_transform(source.open()) for source in chunk])
        outputs.extend(trunk(pixels.to(device)).cpu())
    return outputs


@torch.no_grad()
def run_text_trunk(
    tokens: Sequence[Tensor], encoders: Encoders, device: Any, progress: bool
) -> list[Tensor]:
    """Activations of every caption, on the CPU, without padding."""
    assert encoders.text_trunk is not None
    trunk = encoders.text_trunk.to(device)
    # Captions of like length together, so that little is computed on padding.
    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    outputs: list[Tensor] = [torch.empty(0)] * len(tokens)
    for start in tqdm(range(0, len(order), CHUNK), "captions", disable=not progress):
        rows = order[start : start + CHUNK]
        padded, lengths = pad_texts([tokens[row] for row in rows])
        hidden = trunk(padded.to(device), lengths.to(device)).cpu()
        for row, length, states in zip(rows, lengths.tolist(), hidden, strict=True):
            outputs[row] = states[:length].clone() if states.ndim > 1 else states
    return outputs
