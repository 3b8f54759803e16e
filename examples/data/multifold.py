"""Model inputs of instances with several images and several captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .instances import ImageSource

T = TypeVar("T")


def flatten(groups: Sequence[Sequence[T]]) -> tuple[list[T], Tensor]:
    """Concatenate ragged groups; returns the items and the group id (items,) of each."""
    ids = [place for place, group in enumerate(groups) for _ in group]
    return [item for group in groups for item in group], torch.tensor(ids, dtype=torch.long)


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


def pad_texts(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack text inputs (L_j, ...) to (N, max L_j, ...), and their lengths (N,)."""
    lengths = torch.tensor([len(text) for text in texts])
    return pad_sequence(list(texts), batch_first=True), lengths


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
