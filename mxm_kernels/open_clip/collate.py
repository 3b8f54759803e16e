"""A batch of images with all their captions, as both readers of open_clip's data make it."""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels.folds import Folds

Item = tuple[Tensor, Tensor, int]  # image, tokens of its captions (k, L), id of the instance


def collate(items: list[Item]) -> tuple[Tensor, Tensor, Folds]:
    """(B, 3, H, W) images, (N, L) tokens of all captions, and which belong together."""
    images, texts, ids = zip(*items, strict=True)
    counts = torch.tensor([len(tokens) for tokens in texts], device="cpu")
    image_ids = torch.tensor(ids, device="cpu")
    folds = Folds.from_ids(image_ids, image_ids.repeat_interleave(counts))
    return torch.stack(images), torch.cat(texts), folds
