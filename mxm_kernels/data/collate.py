"""Instances of different sizes as one batch of rows with their folds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import default_collate

from mxm_kernels.data.dataset import MultifoldItem
from mxm_kernels.folds import Folds, as_ids


class MultifoldBatch(NamedTuple):
    """A batch: the images and texts of B instances as M image rows and N text rows.

    ``images`` and ``texts`` are what the collate functions return, by default tensors (M, ...) and
    (N, ...). It is a named tuple, so a DataLoader pins its parts.
    """

    images: Any
    texts: Any
    folds: Folds
    image_ids: Tensor  # (M,) int64, the instance of each image row
    text_ids: Tensor  # (N,) int64

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> MultifoldBatch:
        """Return the same batch with its tensors and folds on ``device``."""
        return MultifoldBatch(*(_moved(part, device, non_blocking) for part in self))


def collate_multifold(
    items: Sequence[MultifoldItem],
    *,
    collate_images: Callable[[list[Any]], Any] = default_collate,
    collate_texts: Callable[[list[Any]], Any] = default_collate,
) -> MultifoldBatch:
    """Make a batch of instances that may differ in size, for ``DataLoader(collate_fn=...)``.

    Args:
        items: the instances. One that comes twice counts as one instance with the rows of both.
        collate_images: takes the list of the M images of the batch, and returns what the model
            takes; by default it stacks them. Pass another one with ``functools.partial``.
        collate_texts: the same for the N texts: for instance a tokenizer, or a function that
            pads.

    Raises:
        TypeError: an item has not the fields of a :class:`MultifoldItem`.
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
        if not all(hasattr(item, field) for field in MultifoldItem._fields):
            raise TypeError(f"items must be MultifoldItem, got {type(item).__name__}")
    images = [image for item in items for image in item.images]
    texts = [text for item in items for text in item.texts]
    for name, rows in (("images", images), ("texts", texts)):
        if not rows:
            raise ValueError(
                f"items: a batch needs {name}, but its {len(items)} instances have none"
            )
    # By NumPy: torch would use its default device, which a worker process may not touch.
    instances = as_ids("instance_id", [item.instance_id for item in items]).numpy()
    image_ids = torch.from_numpy(instances.repeat([len(item.images) for item in items]))
    text_ids = torch.from_numpy(instances.repeat([len(item.texts) for item in items]))
    return MultifoldBatch(
        collate_images(images),
        collate_texts(texts),
        Folds.from_ids(image_ids, text_ids),
        image_ids,
        text_ids,
    )


def _moved(part: Any, device: torch.device | str | int, non_blocking: bool) -> Any:
    """Anything that collate functions return: tensors, and what holds them."""
    if hasattr(part, "to"):
        return part.to(device, non_blocking=non_blocking)
    if isinstance(part, Mapping):
        return {name: _moved(value, device, non_blocking) for name, value in part.items()}
    if isinstance(part, (tuple, list)):
        values = [_moved(value, device, non_blocking) for value in part]
        if hasattr(part, "_fields"):
            return cast(Any, type(part))(*values)
        return type(part)(values)
    return part
