"""What the rules of a problem say of a tile of pairs, in plain PyTorch: the definition.

Image i and text j that have different groups are negatives of each other, unless they are removed:

    e_i = e_j and e_i >= 0                      ``exclude_ids`` e: a common id is no negative
    w_i != w_j and w_i >= 0 and w_j >= 0        ``within_ids`` w: nor are two different ids
    <X_i, Y_j> > theta                          ``thresholds``: nor what the teacher finds similar

theta is that of the image for its row of S, and that of the text for its column. The ids remove a
pair for both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels.backends.interface import Problem
from mxm_kernels.backends.tiles import Span


def removed_by_ids(p: Problem, rows: Span, cols: Span) -> Tensor | None:
    """(h, w) whether the ids remove the pairs of a tile; None where there are no ids."""
    removed = None
    if p.exclude_ids is not None:
        of_images, of_texts = _sides(p, p.exclude_ids, rows, cols)
        removed = (of_images == of_texts) & (of_images >= 0)
    if p.within_ids is not None:
        of_images, of_texts = _sides(p, p.within_ids, rows, cols)
        apart = (of_images != of_texts) & (of_images >= 0) & (of_texts >= 0)
        removed = apart if removed is None else removed | apart
    return removed


def removed(
    p: Problem, rows: Span, cols: Span, products: Tensor | None, same: Tensor
) -> tuple[Tensor, Tensor]:
    """(h, w) twice: whether the pairs of a tile are removed for their images, for their texts.

    ``products`` (h, w) are the teacher's, ``same`` (h, w) whether the groups are the same.
    """
    by_ids = removed_by_ids(p, rows, cols)
    shared = torch.zeros_like(same) if by_ids is None else by_ids & ~same
    if p.thresholds is None or products is None:
        return shared, shared
    of_images, of_texts = _sides(p, p.thresholds, rows, cols)
    return (
        shared | (products > of_images) & ~same,
        shared | (products > of_texts) & ~same,
    )


def add_offsets(p: Problem, offsets: Tensor | None, tile: Tensor, rows: Span, cols: Span) -> None:
    """Add b_i + b_j to a tile of logits (h, w)."""
    if offsets is not None:
        of_images, of_texts = _sides(p, offsets, rows, cols)
        tile.add_(of_images).add_(of_texts)


def same_groups(p: Problem, rows: Span, cols: Span) -> Tensor:
    """(h, w) whether the groups of the pairs of a tile are the same."""
    return p.image_groups[slice(*rows), None] == p.text_groups[slice(*cols)]


def _sides(p: Problem, numbers: Tensor, rows: Span, cols: Span) -> tuple[Tensor, Tensor]:
    """(h, 1) of the images and (w,) of the texts, from numbers of the R rows."""
    images, texts = p.halves(numbers)
    return images[slice(*rows), None], texts[slice(*cols)]
