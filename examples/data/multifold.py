"""Model inputs of instances with several images and several captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mxm_kernels import fold_mean

from .instances import ImageSource

T = TypeVar("T")
Aggregate = Literal["none", "images", "texts", "both"]


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


def aggregated(
    sides: Aggregate, images: Tensor, texts: Tensor, image_ids: Tensor, text_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One feature for an instance instead of several, on the sides that are named.

    Args:
        sides: "images", "texts", "both", or "none", which changes nothing.
        images: (M, D) features.
        texts: (N, D) features.
        image_ids: (M,) the instance of each image.
        text_ids: (N,) the instance of each text.

    Returns:
        The same four. On a side that is named, the features are (G, D), the means over each
        instance's rows at length 1, and the ids (G,) those of the G instances, ascending.

    """
    if sides in ("images", "both"):
        images, image_ids = fold_mean(images, image_ids)
    if sides in ("texts", "both"):
        texts, text_ids = fold_mean(texts, text_ids)
    return images, texts, image_ids, text_ids


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
