"""Batches of instances with several images and several captions, as ragged folds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from mxm_kernels import Folds

from .instances import ImageSource

T = TypeVar("T")


def flatten(groups: Sequence[Sequence[T]]) -> tuple[list[T], Tensor]:
    """Concatenate ragged groups; returns the items and the group id (items,) of each."""
    sizes = torch.tensor([len(group) for group in groups], dtype=torch.long)
    ids = torch.repeat_interleave(torch.arange(len(groups)), sizes)
    return [item for group in groups for item in group], ids


@dataclass
class Observations:
    """Model inputs of a split's images and captions, in instance order.

    `images[i]` is the input of image i and `texts[j]` that of caption j: tensors kept in memory,
    or made on access. `image_ids` (images,) and `text_ids` (captions,) number the instances.
    """

    images: Sequence[Tensor]
    texts: Sequence[Tensor]
    image_ids: Tensor
    text_ids: Tensor


@dataclass
class Batch:
    """M images and N captions of some instances.

    `images` (M, ...), `texts` (N, L, ...) padded with zeros, `text_lengths` (N,).
    """

    images: Tensor
    texts: Tensor
    text_lengths: Tensor
    folds: Folds

    def to(self, *args: Any, **kwargs: Any) -> "Batch":
        """Move to a device, with the arguments of Tensor.to."""
        return Batch(
            images=self.images.to(*args, **kwargs),
            texts=self.texts.to(*args, **kwargs),
            text_lengths=self.text_lengths.to(*args, **kwargs),
            folds=self.folds.to(*args, **kwargs),
        )


def pad_texts(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack text inputs (L_j, ...) to (N, max L_j, ...), and their lengths (N,)."""
    lengths = torch.tensor([len(text) for text in texts])
    return pad_sequence(list(texts), batch_first=True), lengths


Item = tuple[int, list[Tensor], list[Tensor]]


def collate(items: Sequence[Item]) -> Batch:
    """Batch of ragged instances; the folds say which rows belong together."""
    images, image_ids = flatten([item[1] for item in items])
    texts, text_ids = flatten([item[2] for item in items])
    padded, lengths = pad_texts(texts)
    return Batch(torch.stack(images), padded, lengths, Folds.from_ids(image_ids, text_ids))


class MultifoldDataset(Dataset[Item]):
    """Inputs of an instance: all of its images and captions, or one random pair.

    A key is (epoch, index). The pair is drawn from (seed, epoch, index) alone, so a run that is
    resumed, or reads ahead in worker processes, draws the same.
    """

    def __init__(self, observations: Observations, seed: int, single_pair: bool = False) -> None:
        self.observations = observations
        self.seed = seed
        self.single_pair = single_pair
        self.image_rows = rows_by_instance(observations.image_ids)
        self.text_rows = rows_by_instance(observations.text_ids)

    def __len__(self) -> int:
        return len(self.image_rows)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        images, texts = self.image_rows[index], self.text_rows[index]
        if self.single_pair:
            rng = np.random.default_rng((self.seed, epoch, index))
            images, texts = [int(rng.choice(images))], [int(rng.choice(texts))]
        data = self.observations
        return index, [data.images[i] for i in images], [data.texts[j] for j in texts]


def rows_by_instance(ids: Tensor) -> list[list[int]]:
    """Rows of every instance, from the rows' instance ids (rows,)."""
    rows: list[list[int]] = [[] for _ in range(int(ids.max()) + 1)]
    for row, instance in enumerate(ids.tolist()):
        rows[instance].append(row)
    return rows


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Keys of the instances of every optimiser step from `start` on.

    The order of an epoch is a function of (seed, epoch) alone, which makes a resumed run see the
    batches of an uninterrupted one. An incomplete last batch of an epoch is dropped, as in-batch
    negatives would be fewer there. Every batch has `batch_size` instances.
    """

    drop_last = True  # read by Accelerate, as is batch_size, to share a batch between processes

    def __init__(self, instances: int, batch_size: int, steps: int, seed: int, start: int = 0):
        self.instances, self.batch_size = instances, min(batch_size, instances)
        self.steps, self.seed, self.start = steps, seed, start

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.instances // self.batch_size

    def __len__(self) -> int:
        return max(self.steps - self.start, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            order = np.random.default_rng((self.seed, epoch)).permutation(self.instances)
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in chosen]


class LazyInputs(Sequence[Tensor]):
    """Inputs of images that are decoded on access, for what does not fit in memory."""

    def __init__(
        self, sources: Sequence[ImageSource], transform: Callable[[Image.Image], Tensor]
    ) -> None:
        self.sources, self.transform = sources, transform

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        return self.transform(self.sources[index].open())
