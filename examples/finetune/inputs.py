"""What a run starts from: encoders, and a split's inputs, over which the frozen trunk runs once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import tqdm
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import load_splits
from ..data.instances import Instance
from ..data.multifold import LazyInputs, Observations, flatten, pad_texts
from ..encoders.dual import Encoders
from ..errors import OptionError
from .config import Config

CHUNK = 64


@dataclass
class Material:
    """Inputs that do not depend on what is trained, so that several runs can share them."""

    instances: list[Instance]  # of the evaluated split
    train: Observations
    evaluation: Observations


def build_encoders(config: Config) -> Encoders:
    """Build the encoders that the configuration names."""
    c = config
    # Either import takes seconds, and neither needs the other.
    if c.model == "packaged":
        from ..encoders.packaged import packaged_encoders

        return packaged_encoders(c.unfreeze, c.image_size, c.embed_dim, c.temperature)
    from ..encoders.open_clip import open_clip_encoders

    return open_clip_encoders(c.model, c.pretrained, c.unfreeze, c.temperature)


def load_instances(config: Config) -> list[list[Instance]]:
    """Instances of the training split, and of the split that is evaluated."""
    splits = load_splits(config.data, config.data_root, config.split_seed)
    chosen = {name: getattr(splits, name) for name in ("train", config.eval_split)}
    for name, instances in chosen.items():
        if not instances:
            raise OptionError(f"--data {config.data}: the {name} split is empty")
    return [instances[: config.limit or None] for instances in chosen.values()]


def observe(
    instances: Sequence[Instance], encoders: Encoders, device: Any = "cpu", progress: bool = True
) -> Observations:
    """Model inputs of the images and captions of some instances."""
    sources, image_ids = flatten([instance.images for instance in instances])
    captions, text_ids = flatten([instance.captions for instance in instances])
    images: Sequence[Tensor] = LazyInputs(sources, encoders.image_transform)
    texts = [encoders.tokenize(caption) for caption in captions]
    if encoders.trunk is not None:
        trunk = encoders.trunk.to(device)
        images = run_images(trunk.image_tower, images, device, progress)
        texts = run_texts(trunk.text_tower, texts, device, progress)
    return Observations(images, texts, image_ids, text_ids)


@torch.no_grad()
def run_images(
    encode: Callable, images: Sequence[Tensor], device: Any, progress: bool = False
) -> list[Tensor]:
    """Outputs of an encoder for every image, on the CPU."""
    chunks = tqdm(DataLoader(cast(Any, images), CHUNK), desc="images", disable=not progress)
    return [output for chunk in chunks for output in encode(chunk.to(device)).cpu()]


@torch.no_grad()
def run_texts(
    encode: Callable, texts: Sequence[Tensor], device: Any, progress: bool = False
) -> list[Tensor]:
    """Outputs of an encoder for every caption, on the CPU, without padding."""
    # Captions of like length together, so that little is computed on padding.
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    loader: DataLoader[Any] = DataLoader(
        cast(Any, texts), CHUNK, sampler=order, collate_fn=pad_texts
    )
    outputs: list[Tensor] = []
    for padded, lengths in tqdm(loader, desc="captions", disable=not progress):
        states = encode(padded.to(device), lengths.to(device)).cpu()
        pairs = zip(states, lengths.tolist(), strict=True)
        outputs += [row[:length].clone() if row.ndim > 1 else row for row, length in pairs]
    return [outputs[place] for place in np.argsort(order)]
