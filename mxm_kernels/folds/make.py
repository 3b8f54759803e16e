"""Make the tables of a batch: from ids, from counts, without pairs, without rows as their own.

Tables that follow from sizes are kept: a training run asks for the same ones at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mxm_kernels.folds.tables import SIZES, FoldTables, PairTables, kept_with_tables, lasts


class _Members(NamedTuple):
    """The rows of one modality, sorted by group."""

    counts: Tensor  # (G,) rows of each group
    starts: Tensor  # (G,) where each group begins in `order`
    order: Tensor  # (rows,) row numbers, group after group
    positions: Tensor  # (rows,) place of each row within its group


def _members(row_groups: Tensor, groups: int) -> _Members:
    counts = torch.zeros(groups, dtype=torch.int64, device=row_groups.device)
    counts.scatter_add_(0, row_groups, torch.ones_like(row_groups))
    starts = counts.cumsum(0) - counts
    order = row_groups.argsort(stable=True)
    places = torch.arange(len(row_groups), device=row_groups.device)
    positions = torch.empty_like(order)
    positions[order] = places - starts[row_groups[order]]
    return _Members(counts, starts, order, positions)


def _segments(lengths: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets (rows + 1,), and for each of ``total`` places its row and its lane in the row."""
    offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths, 0, out=offsets[1:])
    rows = torch.arange(len(lengths), device=lengths.device)
    owners = rows.repeat_interleave(lengths, output_size=total)
    lanes = torch.arange(total, device=lengths.device) - offsets[owners]
    return offsets, owners, lanes


def _sort_pairs(
    image_groups: Tensor,
    text_groups: Tensor,
    groups: int,
    pairs: int,
    with_positive: tuple[int, int, int],
) -> FoldTables:
    images, texts = _members(image_groups, groups), _members(text_groups, groups)
    image_offsets, pair_images, lanes = _segments(texts.counts[image_groups], pairs)
    pair_texts = texts.order[texts.starts[image_groups[pair_images]] + lanes]
    text_offsets, text_owners, lanes = _segments(images.counts[text_groups], pairs)
    partners = images.order[images.starts[text_groups[text_owners]] + lanes]
    text_slots = image_offsets[partners] + texts.positions[text_owners]
    slot_places = torch.empty_like(text_slots)
    slot_places[text_slots] = torch.arange(pairs, device=text_slots.device)
    return FoldTables(
        image_groups.to(torch.int32),
        text_groups.to(torch.int32),
        torch.cat([image_offsets, text_offsets[1:] + pairs]),
        torch.cat([pair_images, text_owners + len(image_groups)]),
        pair_texts,
        slot_places,
        texts.positions.to(torch.int32),
        text_slots,
        *with_positive,
    )


# Made outside inference mode, tables can serve a training step later.
@torch.inference_mode(False)
def tables_from_ids(image_ids: Tensor, text_ids: Tensor) -> FoldTables:
    """Tables of (M,) and (N,) int64 instance ids, in any order and number."""
    names, groups = torch.unique(torch.cat([image_ids, text_ids]), return_inverse=True)
    image_groups, text_groups = groups[: len(image_ids)], groups[len(image_ids) :]
    image_counts = torch.zeros_like(names).scatter_add_(
        0, image_groups, torch.ones_like(image_groups)
    )
    text_counts = torch.zeros_like(names).scatter_add_(0, text_groups, torch.ones_like(text_groups))
    return _sort_pairs(
        image_groups,
        text_groups,
        groups=len(names),
        pairs=int((image_counts * text_counts).sum()),
        with_positive=(
            int(image_counts[text_counts > 0].sum()),
            int(text_counts[image_counts > 0].sum()),
            int(image_counts[text_counts == 1].sum()),
        ),
    )


def tables_without_pairs(images: int, texts: int, device: torch.device) -> FoldTables:
    """Tables of rows that have no instance in common, kept."""
    return _kept_if_lasting(_tables_without_pairs, images, texts, device)


def tables_from_counts(
    views: int, captions: int, instances: int, device: torch.device
) -> FoldTables:
    """Tables of a uniform batch, kept."""
    return _kept_if_lasting(_tables_from_counts, views, captions, instances, device)


@torch.inference_mode(False)
def _tables_without_pairs(images: int, texts: int, device: torch.device) -> FoldTables:
    return _sort_pairs(
        torch.zeros(images, dtype=torch.int64, device=device),
        torch.ones(texts, dtype=torch.int64, device=device),
        groups=2,
        pairs=0,
        with_positive=(0, 0, 0),
    )


@torch.inference_mode(False)
def _tables_from_counts(
    views: int, captions: int, instances: int, device: torch.device
) -> FoldTables:
    numbers = torch.arange(instances, device=device)
    rows = instances * views, instances * captions
    return _sort_pairs(
        numbers.repeat_interleave(views, output_size=rows[0]),
        numbers.repeat_interleave(captions, output_size=rows[1]),
        groups=instances,
        pairs=instances * views * captions,
        with_positive=(*rows, rows[0] if captions == 1 else 0),
    )


def _kept_if_lasting(make: Callable[..., FoldTables], *sizes: Any) -> FoldTables:
    """Tables that follow from sizes: a training run asks for the same ones at every step."""
    return _kept(make, *sizes) if lasts(sizes[-1]) else make(*sizes)


@lru_cache(maxsize=SIZES)
def _kept(make: Callable[..., FoldTables], *sizes: Any) -> FoldTables:
    return replace(make(*sizes), kept=True)


@kept_with_tables
def without_itself(tables: FoldTables) -> FoldTables:
    """Tables of rows that are both sides, in which no row is a positive of itself.

    It is no negative either, since its group is its own. A slot does not follow from
    ``text_positions`` here, and no table is made of these again.
    """
    images, texts = tables.pair_images, tables.pair_texts
    slots = (images != texts).nonzero_static(size=tables.pairs - tables.images).squeeze(1)
    counts = tables.offsets[: tables.images + 1].diff() - 1
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    made = PairTables.of_slots(
        tables.image_groups, tables.text_groups, offsets, images[slots], texts[slots]
    )
    with_others = tables.images - tables.images_with_one_positive
    return FoldTables(
        *made,
        text_positions=tables.text_positions,
        text_slots=made.slot_places,  # of a symmetric relation, its own inverse
        images_with_positive=with_others,
        texts_with_positive=with_others,
        images_with_one_positive=0,
        kept=tables.kept,
    )
