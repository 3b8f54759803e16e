"""Batches of multifold data for a DataLoader: instances, their images and captions, their folds.

    sampler, in the main process     ->  keys (instance, epoch, seed)
    dataset, in the worker processes ->  an instance's images and texts, all of them or k drawn
    collate, in the worker processes ->  the stacked rows and their :class:`~mxm_kernels.Folds`

Everything random is a function of the key, so neither the number of workers, nor reading ahead,
nor a resumed run changes what a training step sees.

Example:
    >>> import torch
    >>> from torch.utils.data import DataLoader
    >>> from mxm_kernels.data import MultifoldBatchSampler, MultifoldDataset, collate_multifold
    >>> images, texts = torch.randn(7, 3, 8, 8), torch.randn(6, 16)
    >>> dataset = MultifoldDataset(images, texts, [0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 2])
    >>> sampler = MultifoldBatchSampler(len(dataset), batch_size=3, seed=1)
    >>> loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_multifold)
    >>> for epoch in range(2):
    ...     sampler.set_epoch(epoch)
    ...     for batch in loader:
    ...         print(batch.images.shape, batch.texts.shape, batch.folds)
    torch.Size([7, 3, 8, 8]) torch.Size([6, 16]) Folds(images=7, texts=6, positives=13)
    torch.Size([7, 3, 8, 8]) torch.Size([6, 16]) Folds(images=7, texts=6, positives=13)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from mxm_kernels.folds import Folds, Ids, as_ids

__all__ = [
    "InstanceKey",
    "MultifoldBatch",
    "MultifoldBatchSampler",
    "MultifoldDataset",
    "MultifoldItem",
    "collate_multifold",
]


class InstanceKey(NamedTuple):
    """What the sampler asks a dataset for: an instance, and the randomness of its epoch."""

    instance: int  # its place in the dataset, from 0
    epoch: int = 0
    seed: int = 0

    def generator(self) -> np.random.Generator:
        """The instance's random numbers in this epoch, for draws and for augmentation."""
        return np.random.default_rng((self.seed, self.epoch, self.instance))


class MultifoldItem(NamedTuple):
    """One instance: what a dataset returns and :func:`collate_multifold` takes."""

    instance_id: int  # rows of equal ids are positives, across batches and processes
    images: Sequence[Any]
    texts: Sequence[Any]


class MultifoldBatch(NamedTuple):
    """The observations of B instances as M image rows and N text rows.

    A named tuple, so a DataLoader pins its parts: ``images`` and ``texts`` are what the collate
    functions return, by default tensors (M, ...) and (N, ...).
    """

    images: Any
    texts: Any
    folds: Folds
    image_ids: Tensor  # (M,) int64, the instance of each image row
    text_ids: Tensor  # (N,) int64

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> MultifoldBatch:
        """Return the same batch with its tensors and folds on ``device``."""
        return MultifoldBatch(*(_moved(part, device, non_blocking) for part in self))


class MultifoldBatchSampler(Sampler[list[InstanceKey]]):
    """Batches of B distinct instances, each instance at most once in an epoch.

    Every replica (process) has to be given the same arguments but ``rank``: the epoch's order is
    a function of seed and epoch, and each replica takes its part of every batch.

    Args:
        instances: number of instances of the dataset.
        batch_size: B, instances in a batch of one replica; a batch over all replicas has
            ``num_replicas`` times as many.
        seed: of the order, and of the draws that the dataset makes from its keys.
        shuffle: False takes the instances in their order.
        drop_last: leave out the rest that does not fill a batch of all replicas, where there
            would be fewer negatives. False makes a smaller last batch, whose parts differ by at
            most one instance between replicas.
        rank: this replica, from 0; ``torch.distributed.get_rank()``.
        num_replicas: ``torch.distributed.get_world_size()``. Leave both at their defaults where a
            library shares batches between processes by itself, as Accelerate does.

    Raises:
        TypeError, ValueError: an argument is not as described; an epoch would have no batch; the
            last batch has fewer instances than there are replicas.

    To go on in the middle of an epoch, after ``step`` batches in all:

    Example:
        >>> from mxm_kernels.data import MultifoldBatchSampler
        >>> sampler = MultifoldBatchSampler(instances=10, batch_size=3, seed=1)
        >>> step = 4  # of a checkpoint
        >>> epoch, start_batch = divmod(step, sampler.batches_per_epoch)
        >>> sampler.resume(epoch, start_batch)
        >>> len(sampler)
        2
    """

    def __init__(
        self,
        instances: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self.instances = _count("instances", instances, 1)
        self.batch_size = _count("batch_size", batch_size, 1)
        self.seed = _count("seed", seed, 0)
        self.shuffle, self.drop_last = shuffle, drop_last
        self.num_replicas = _count("num_replicas", num_replicas, 1)
        self.rank = _count("rank", rank, 0)
        if self.rank >= self.num_replicas:
            raise ValueError(f"rank must be below num_replicas={num_replicas}, got {rank}")
        rest = self.instances % self._shared_size
        if drop_last and not self.batches_per_epoch:
            raise ValueError(
                f"batch_size: {batch_size} for each of {num_replicas} replicas is more than the "
                f"{instances} instances, and drop_last=True leaves no batch"
            )
        if not drop_last and 0 < rest < self.num_replicas:
            raise ValueError(
                f"drop_last=False leaves {rest} instances to the last batch of {num_replicas} "
                "replicas, which need one each; use drop_last=True or another batch_size"
            )
        self._epoch, self._resumed = 0, (0, 0)

    @property
    def _shared_size(self) -> int:
        """Instances in a batch of all replicas."""
        return self.batch_size * self.num_replicas

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch, the same for every replica."""
        whole, rest = divmod(self.instances, self._shared_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration goes through."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; without a call it is the same order again."""
        self._epoch = _count("epoch", epoch, 0)

    def resume(self, epoch: int, start_batch: int) -> None:
        """Choose an epoch and leave out its first ``start_batch`` batches; later ones are whole.

        Count the batches in the training loop: workers read ahead, so the sampler cannot know.
        """
        if not 0 <= _count("start_batch", start_batch, 0) <= self.batches_per_epoch:
            raise ValueError(
                f"start_batch must be at most the {self.batches_per_epoch} batches of an epoch, "
                f"got {start_batch}"
            )
        self.set_epoch(epoch)
        self._resumed = self._epoch, int(start_batch)

    @property
    def _start_batch(self) -> int:
        epoch, batch = self._resumed
        return batch if epoch == self._epoch else 0

    def __len__(self) -> int:
        return self.batches_per_epoch - self._start_batch

    def __iter__(self) -> Iterator[list[InstanceKey]]:
        return self._batches(self._epoch, self._start_batch)

    def _batches(self, epoch: int, start: int) -> Iterator[list[InstanceKey]]:
        order = np.arange(self.instances)
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.instances)
        for batch in range(start, self.batches_per_epoch):
            shared = order[batch * self._shared_size : (batch + 1) * self._shared_size]
            own = np.array_split(shared, self.num_replicas)[self.rank]
            yield [InstanceKey(int(index), epoch, self.seed) for index in own]


class MultifoldDataset(Dataset[MultifoldItem]):
    """Instances whose images and texts lie in two flat sequences.

    Any dataset does that takes an :class:`InstanceKey` and returns a :class:`MultifoldItem`;
    ``key.generator()`` is there for its draws and its augmentation. A plain integer is the key
    of epoch 0 and seed 0.

    Args:
        images: sequence of M image inputs, in memory or made on access.
        texts: sequence of N text inputs.
        image_ids: (M,) integers, the instance of each image, in any order and of any number.
        text_ids: (N,) integers; an instance may be on one side only.
        views: images drawn of each instance in every epoch, without replacement; None, or more
            than an instance has, takes all.
        captions: the same for texts. ``views=1, captions=1`` are the random pairs of CLIP.
    """

    def __init__(
        self,
        images: Sequence[Any] | Tensor,
        texts: Sequence[Any] | Tensor,
        image_ids: Ids,
        text_ids: Ids,
        *,
        views: int | None = None,
        captions: int | None = None,
    ) -> None:
        self.images, self.texts = images, texts
        self.views = None if views is None else _count("views", views, 1)
        self.captions = None if captions is None else _count("captions", captions, 1)
        ids = _ids("image_ids", image_ids, images), _ids("text_ids", text_ids, texts)
        self.instances = np.union1d(*ids)  # (instances,) their ids, in increasing order
        if not len(self.instances):
            raise ValueError("image_ids and text_ids must name at least one instance")
        self._image_rows, self._text_rows = (_Rows(side, self.instances) for side in ids)

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, key: InstanceKey | int) -> MultifoldItem:
        if not isinstance(key, InstanceKey):
            if isinstance(key, bool) or not isinstance(key, Integral):
                raise TypeError(
                    f"key must be an InstanceKey or an integer, got {type(key).__name__}"
                )
            key = InstanceKey(int(key))
        if not 0 <= key.instance < len(self):
            raise IndexError(
                f"key: expected an instance from 0 to {len(self) - 1}, got {key.instance}"
            )
        generator = key.generator()
        images = _drawn(self._image_rows[key.instance], self.views, generator)
        texts = _drawn(self._text_rows[key.instance], self.captions, generator)
        return MultifoldItem(
            int(self.instances[key.instance]),
            [self.images[row] for row in images],
            [self.texts[row] for row in texts],
        )


def collate_multifold(
    items: Sequence[MultifoldItem],
    *,
    collate_images: Callable[[list[Any]], Any] = default_collate,
    collate_texts: Callable[[list[Any]], Any] = default_collate,
) -> MultifoldBatch:
    """Batch of ragged instances, for ``DataLoader(collate_fn=...)``.

    Args:
        items: the instances; the same one twice counts as one with all of their rows.
        collate_images: makes the M images of the batch, a list, into what the model takes; by
            default they are stacked. Pass another one with ``functools.partial``.
        collate_texts: the same for the N texts; a tokenizer or a function that pads, say.

    Raises:
        TypeError: an item is no :class:`MultifoldItem`.
        ValueError: the batch has no image or no text.

    Example:
        >>> import torch
        >>> from mxm_kernels.data import MultifoldItem, collate_multifold
        >>> a = MultifoldItem(4, [torch.zeros(2), torch.zeros(2)], ["a cup", "a mug"])
        >>> b = MultifoldItem(9, [torch.ones(2)], ["a dog"])
        >>> batch = collate_multifold([a, b])
        >>> batch.images.shape, batch.texts, batch.text_ids
        (torch.Size([3, 2]), ['a cup', 'a mug', 'a dog'], tensor([4, 4, 9]))
    """
    for item in items:
        if not isinstance(item, MultifoldItem):
            raise TypeError(f"items must be MultifoldItem, got {type(item).__name__}")
    images = [image for item in items for image in item.images]
    texts = [text for item in items for text in item.texts]
    for name, rows in (("images", images), ("texts", texts)):
        if not rows:
            raise ValueError(
                f"items: a batch needs {name}, but its {len(items)} instances have none"
            )
    # NumPy, for torch would put them on its default device, which a worker process may not touch.
    instances = np.array([item.instance_id for item in items], dtype=np.int64)
    image_ids = torch.from_numpy(instances.repeat([len(item.images) for item in items]))
    text_ids = torch.from_numpy(instances.repeat([len(item.texts) for item in items]))
    return MultifoldBatch(
        collate_images(images),
        collate_texts(texts),
        Folds.from_ids(image_ids, text_ids),
        image_ids,
        text_ids,
    )


class _Rows(Sequence[np.ndarray]):
    """The rows of each instance, from the instance of each row."""

    def __init__(self, ids: np.ndarray, instances: np.ndarray) -> None:
        self.order = ids.argsort(kind="stable")
        self.starts = np.searchsorted(ids[self.order], instances)
        self.ends = np.searchsorted(ids[self.order], instances, side="right")

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: Any) -> Any:
        return self.order[self.starts[index] : self.ends[index]]


def _drawn(rows: np.ndarray, k: int | None, generator: np.random.Generator) -> list[int]:
    if k is None or k >= len(rows):
        return rows.tolist()
    return generator.choice(rows, k, replace=False).tolist()


def _ids(name: str, ids: Ids, rows: Sequence[Any] | Tensor) -> np.ndarray:
    vector = as_ids(name, ids).cpu().numpy()
    if len(vector) != len(rows):
        side = name.removesuffix("_ids")
        raise ValueError(
            f"{name}: expected an id for each of the {len(rows)} {side}s, got {len(vector)}"
        )
    return vector


def _count(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def _moved(part: Any, device: torch.device | str | int, non_blocking: bool) -> Any:
    """Anything that collate functions return: tensors, and what holds them."""
    if hasattr(part, "to"):
        return part.to(device, non_blocking=non_blocking)
    if isinstance(part, Mapping):
        return {name: _moved(value, device, non_blocking) for name, value in part.items()}
    if isinstance(part, tuple | list):
        values = [_moved(value, device, non_blocking) for value in part]
        if hasattr(part, "_fields"):
            return cast(Any, type(part))(*values)
        return type(part)(values)
    return part
