"""Augmentation of training images, drawn anew in every epoch.

The MXM-CLR paper (its section 6.1) crops, flips and rotates the resized images at random. It gives
no strengths; those below are this example's. No conclusion is drawn from augmented emoji: a flip
changes what an emoji means, as of an arrow, a flag or a thumb.

The draws of an image are a function of seed, epoch and instance. So neither the number of workers
nor a resumed run changes them.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mxm_kernels.data import InstanceKey, MultifoldDataset, MultifoldItem

Augment = Literal["none", "paper"]
LEAST_AREA = 0.8  # of an image that a crop keeps; it is then resized to the image's size
MOST_DEGREES = 15
OWN_STREAM = 1  # of random numbers, beside the data set's, which chooses views and captions


def paper_augmentation(size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Crop, flips and rotation of one image (C, H, W) of this height and width in pixels.

    What a rotation uncovers becomes 0, which in a normalised image is the mean colour.
    """
    from torchvision.transforms import v2  # seconds, which only a run that augments waits for

    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(LEAST_AREA, 1), ratio=(1, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomRotation(MOST_DEGREES, v2.InterpolationMode.BILINEAR),
        ]
    )


AUGMENTATIONS = {"paper": paper_augmentation}


class AugmentedDataset(Dataset[MultifoldItem]):
    """A data set whose images (C, H, W) are augmented when they are asked for."""

    def __init__(self, dataset: MultifoldDataset, augmentation: Callable) -> None:
        self.dataset, self.augmentation = dataset, augmentation

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: InstanceKey) -> MultifoldItem:
        item = self.dataset[key]
        words = key.seed, key.epoch, key.instance, OWN_STREAM
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))
            images = [self.augmentation(image.shape[-2:])(image) for image in item.images]
        return item._replace(images=images)


def augmented(dataset: MultifoldDataset, augment: Augment) -> MultifoldDataset | AugmentedDataset:
    """The data set, with the augmentation of this name."""
    found = AUGMENTATIONS.get(augment)
    return dataset if found is None else AugmentedDataset(dataset, found)
