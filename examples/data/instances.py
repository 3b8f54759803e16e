"""Instances with several images and several captions, and their splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image


class ImageSource(Protocol):
    """An image that is decoded or rendered when it is asked for."""

    def open(self) -> Image.Image:
        """Return the image in RGB."""


@dataclass(frozen=True)
class ImageFile:
    """Image in a file."""

    path: Path

    def open(self) -> Image.Image:
        """Decode the file, in RGB."""
        with Image.open(self.path) as image:
            return image.convert("RGB")


@dataclass(frozen=True)
class Instance:
    """One thing with its images and its captions, one or more of each."""

    name: str
    images: tuple[ImageSource, ...]
    captions: tuple[str, ...]


@dataclass
class Splits:
    """Instances of the three splits; no instance is in two of them."""

    train: list[Instance]
    val: list[Instance]
    test: list[Instance]


def random_splits(
    instances: Sequence[Instance], seed: int, val: float = 0.1, test: float = 0.2
) -> Splits:
    """Split by instance at random, so that no image or caption of a test instance is trained on."""
    order = np.random.default_rng(seed).permutation(len(instances))
    shuffled = [instances[i] for i in order]
    n_test, n_val = round(test * len(instances)), round(val * len(instances))
    train = shuffled[n_test + n_val :]
    return Splits(train, shuffled[n_test : n_test + n_val], shuffled[:n_test])
