"""The positive pairs of a batch as sorted integer vectors: what the operator reads.

O(M + N + P) integers for M image rows, N text rows and P positive pairs; no mask and no
M x N index. A positive pair has a *slot*, its place when pairs are sorted by image row,
then by text row. A slot follows from two vectors:

    slot(i, j) = offsets[i] + text_positions[j]        where image_groups[i] == text_groups[j]

The rows of S and the rows of its transpose are one list of M + N rows, images first. Its
positives are one list of 2 P: first every pair in slot order, then every pair again in
text-major order, sorted by text row, then by image row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache, wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mxm_kernels.folds.segments import Segments

_P = ParamSpec("_P")
_T = TypeVar("_T")
# Batch sizes whose tables are kept: a training loop has a few, with 56 bytes a pair on its device.
_SIZES = 8


class PairTables(NamedTuple):
    """The positive pairs of some image rows with some text rows, as the operator reads them."""

    image_groups: Tensor  # (M,) int32, the instance of each image row
    text_groups: Tensor  # (N,) int32, the instance of each text row, in the same numbering
    offsets: Tensor  # (M + N + 1,) int64, list row r owns positives offsets[r] : offsets[r + 1]
    owners: Tensor  # (2 P,) int64, list row of each positive; image rows in the first half
    pair_texts: Tensor  # (P,) int64, text row of each slot
    slot_places: Tensor  # (P,) int64, place in text-major order of each slot

    @classmethod
    def of_slots(
        cls,
        image_groups: Tensor,
        text_groups: Tensor,
        image_offsets: Tensor,
        pair_images: Tensor,
        pair_texts: Tensor,
    ) -> PairTables:
        """From the pairs in slot order: (M + 1,) offsets, (P,) image rows and (P,) text rows."""
        images, pairs = len(image_groups), len(pair_texts)
        order = pair_texts.argsort(stable=True)  # slots in text-major order
        places = torch.empty_like(order)
        places[order] = torch.arange(pairs, device=order.device)
        counts = torch.zeros(len(text_groups), dtype=torch.int64, device=order.device)
        counts.scatter_add_(0, pair_texts, torch.ones_like(pair_texts))
        offsets = torch.cat([image_offsets, counts.cumsum(0) + pairs])
        owners = torch.cat([pair_images, pair_texts[order] + images])
        return cls(image_groups, text_groups, offsets, owners, pair_texts, places)


@dataclass(frozen=True, eq=False)
class FoldTables:
    """Groups, slots and both sort orders of the positive pairs.

    The first six vectors are those of :class:`PairTables`.
    """

    image_groups: Tensor
    text_groups: Tensor
    offsets: Tensor
    owners: Tensor
    pair_texts: Tensor
    slot_places: Tensor
    text_positions: Tensor  # (N,) int32, place of text j among the texts of its instance
    text_slots: Tensor  # (P,) int64, slot of each pair in text-major order
    images_with_positive: int
    texts_with_positive: int
    images_with_one_positive: int
    kept: bool = False  # kept for the next batch of the same size, with what follows from them

    @property
    def images(self) -> int:
        """M, the number of image rows."""
        return self.image_groups.shape[0]

    @property
    def texts(self) -> int:
        """N, the number of text rows."""
        return self.text_groups.shape[0]

    @property
    def pairs(self) -> int:
        """P, the number of positive pairs."""
        return self.pair_texts.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the vectors live."""
        return self.image_groups.device

    @property
    def pair_images(self) -> Tensor:
        """(P,) int64, image row of each slot."""
        return self.owners[: self.pairs]

    @property
    def segments(self) -> Segments:
        """The 2 P positives cut into a segment for each of the M + N rows."""
        return Segments(self.offsets, self.owners)

    def pair_tables(self) -> PairTables:
        """What the operator reads."""
        return PairTables(
            self.image_groups,
            self.text_groups,
            self.offsets,
            self.owners,
            self.pair_texts,
            self.slot_places,
        )

    def rows(self, images: slice) -> tuple[PairTables, slice]:
        """The tables of a range of image rows with all texts, and the slots of their pairs."""
        offsets = self.offsets[images.start : images.stop + 1]
        slots = slice(*offsets[[0, -1]].tolist())
        tables = PairTables.of_slots(
            self.image_groups[images],
            self.text_groups,
            offsets - slots.start,
            self.owners[slots] - images.start,
            self.pair_texts[slots],
        )
        return tables, slots

    def columns(self, texts: slice) -> tuple[Segments, slice]:
        """The pairs of a range of text rows, and their places in the list of 2 P positives."""
        offsets = self.offsets[self.images + texts.start : self.images + texts.stop + 1]
        places = slice(*offsets[[0, -1]].tolist())
        owners = self.owners[places] - (self.images + texts.start)
        return Segments(offsets - places.start, owners), places

    def map(self, function: Callable[[Tensor], Tensor]) -> FoldTables:
        """Return a copy with ``function`` applied to every vector."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        vectors: Any = {name: function(v) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, kept=False, **vectors)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a saved state, that of version 0.1 included, which had the two sides apart."""
        if "image_offsets" in state:
            pairs, images = len(state["pair_texts"]), len(state["image_groups"])
            rows, cols = state.pop("image_offsets"), state.pop("text_offsets")
            first, second = state.pop("pair_images"), state.pop("text_owners")
            state["offsets"] = torch.cat([rows, cols[1:] + pairs])
            state["owners"] = torch.cat([first, second + images])
            state["text_positions"] = state.pop("text_ranks")
            state["images_with_one_positive"] = int((rows.diff() == 1).sum())
        self.__dict__.update(state)


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
    return _kept(make, *sizes) if _lasts(sizes[-1]) else make(*sizes)


def _lasts(device: torch.device) -> bool:
    """Whether a tensor made now is what it seems and stays.

    Not while PyTorch traces, nor while a CUDA graph is captured, whose memory pool would own it.
    """
    return not (
        torch.compiler.is_compiling()
        or _get_current_dispatch_mode() is not None
        or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    )


@lru_cache(maxsize=_SIZES)
def _kept(make: Callable[..., FoldTables], *sizes: Any) -> FoldTables:
    return replace(make(*sizes), kept=True)


def kept_with_tables(
    make: Callable[Concatenate[FoldTables, _P], _T],
) -> Callable[Concatenate[FoldTables, _P], _T]:
    """Have what follows from tables alone be kept with those that are: up to 16 launches less."""
    remembered: Any = lru_cache(maxsize=_SIZES)(torch.inference_mode(False)(make))

    @wraps(make)
    def of_tables(tables: FoldTables, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        keep = tables.kept and _lasts(tables.device)
        return (remembered if keep else make)(tables, *args, **kwargs)

    return of_tables


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
