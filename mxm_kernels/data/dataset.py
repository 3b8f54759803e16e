"""A data set of instances, from one sequence of images and one of texts."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from mxm_kernels.checks import as_count
from mxm_kernels.data.sampler import InstanceKey
from mxm_kernels.folds import Ids, as_ids


class MultifoldItem(NamedTuple):
    """One instance with its images and texts: what a data set returns for a key."""

    instance_id: int  # rows of equal ids are positives, across batches and processes
    images: Sequence[Any]
    texts: Sequence[Any]


class MultifoldDataset(Dataset[MultifoldItem]):
    """A data set of instances, from a sequence of images, a sequence of texts and their ids.

    It is indexed by an :class:`InstanceKey` and returns a :class:`MultifoldItem`. Another data set
    that does the same works as well; ``key.generator()`` has the random numbers for its draws and
    its augmentation. A plain integer is the key of epoch 0 and seed 0.

    Args:
        images: sequence of M image inputs, in memory or made on access.
        texts: sequence of N text inputs.
        image_ids: (M,) integers, the instance of each image, in any order.
        text_ids: (N,) integers, the instance of each text; an instance may be on one side only.
        views: number of images that are drawn of each instance in every epoch, without
            replacement. None takes all, and so does a number above those of the instance.
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
        self.views = None if views is None else as_count("views", views, 1)
        self.captions = None if captions is None else as_count("captions", captions, 1)
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
        # Making a generator takes longer than all else here; one serves images, then texts.
        drawn = self.views is not None or self.captions is not None
        generator = key.generator() if drawn else None
        images = _drawn(self._image_rows[key.instance], self.views, generator)
        texts = _drawn(self._text_rows[key.instance], self.captions, generator)
        return MultifoldItem(
            int(self.instances[key.instance]),
            [self.images[row] for row in images],
            [self.texts[row] for row in texts],
        )


class _Rows:
    """The rows of each instance, from the instance of each row."""

    def __init__(self, ids: np.ndarray, instances: np.ndarray) -> None:
        self.order = ids.argsort(kind="stable")
        self.starts = np.searchsorted(ids[self.order], instances)
        self.ends = np.searchsorted(ids[self.order], instances, side="right")

    def __getitem__(self, index: int) -> np.ndarray:
        return self.order[self.starts[index] : self.ends[index]]


def _drawn(rows: np.ndarray, k: int | None, generator: np.random.Generator | None) -> list[int]:
    if generator is None or k is None or k >= len(rows):
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
