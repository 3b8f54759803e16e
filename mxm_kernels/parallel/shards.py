"""This rank's part of a batch: its rows and pairs, and who has the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxm_kernels.fold_tables import FoldTables, RowTables, tables_from_ids, tables_without_pairs
from mxm_kernels.parallel.distributed import Ranks, bounds
from mxm_kernels.segments import Segments


@dataclass(frozen=True, eq=False)
class Shard:
    """This rank's part of a batch: which rows and pairs, and who has the others."""

    ranks: Ranks
    images: tuple[int, ...]  # image rows of each rank
    texts: tuple[int, ...]
    tables: FoldTables  # of the whole batch
    row_tables: RowTables  # own images against all texts
    columns: Segments  # positives of the own texts, text after text
    pairs: tuple[slice, slice]  # own pairs among those of the batch: of the rows, of the columns
    send: tuple[int, ...]  # pairs of own images with a text of each rank
    receive: tuple[int, ...]  # pairs of own texts with an image of each rank
    order: Tensor  # (P_r,) slots of the own images' pairs, by the rank of their text
    places: Tensor  # (P'_r,) where each pair of the own texts is among those that came
    ring: bool = False  # the texts come block by block around a ring

    @classmethod
    def of(
        cls,
        ranks: Ranks,
        images: tuple[int, ...],
        texts: tuple[int, ...],
        ids: tuple[Tensor, Tensor] | None,
        device: torch.device,
        *,
        ring: bool = False,
    ) -> Shard:
        """Gather the ids of this rank's rows, (M_r,) and (N_r,), and find all pairs.

        Without ids no pair is positive.
        """
        tables = tables_without_pairs(sum(images), sum(texts), device)
        if ids is not None:
            tables = tables_from_ids(*_gather_ids(ranks, images, texts, ids))
        rows, cols = bounds(images, ranks.rank), bounds(texts, ranks.rank)
        own, row_pairs = tables.rows(rows)
        columns, column_pairs = tables.columns(cols)
        slots = tables.text_slots[column_pairs]
        text_ranks = _owners(own.pair_texts, texts)
        image_ranks = _owners(tables.pair_images[slots], images)
        sizes = torch.stack([_count(text_ranks, ranks.world), _count(image_ranks, ranks.world)])
        send, receive = sizes.tolist()
        # Pairs travel sorted by image, then text, which is the order of slots.
        places = torch.empty_like(slots)
        places[slots.argsort()] = torch.arange(len(slots), device=slots.device)
        return cls(
            ranks,
            images,
            texts,
            tables,
            own,
            Segments(*columns),
            (row_pairs, column_pairs),
            tuple(send),
            tuple(receive),
            text_ranks.argsort(stable=True),
            places,
            ring,
        )

    def block(self, rank: int) -> tuple[RowTables, Tensor]:
        """The tables of the own images with the texts of one rank, and the slots of the pairs."""
        texts, own = bounds(self.texts, rank), self.row_tables
        slots = self.order.split(self.send)[rank]
        images = own.pair_images[slots]
        offsets = torch.zeros_like(own.image_offsets)
        torch.cumsum(_count(images, len(offsets) - 1), 0, out=offsets[1:])
        tables = RowTables(
            own.image_groups,
            own.text_groups[texts],
            offsets,
            images,
            own.pair_texts[slots] - texts.start,
        )
        return tables, slots

    @property
    def first_image(self) -> int:
        """Which row of the batch this rank's first image is."""
        return bounds(self.images, self.ranks.rank).start

    @property
    def segments(self) -> tuple[Segments, Segments]:
        """The positive pairs of the own images, and of the own texts."""
        return Segments(self.row_tables.image_offsets, self.row_tables.pair_images), self.columns

    def own_rows(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """(M,), (N,) -> (M_r,), (N_r,): the entries of this rank's rows."""
        rank = self.ranks.rank
        return images[bounds(self.images, rank)], texts[bounds(self.texts, rank)]

    def own_pairs(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """(P,) in slot order, (P,) in text-major order -> those of this rank's rows."""
        return images[self.pairs[0]], texts[self.pairs[1]]

    def to_columns(self, parts: Tensor) -> Tensor:
        """Parts of every column (N, k) -> those of the own columns, by rank (W, N_r, k)."""
        mine = self.texts[self.ranks.rank]
        came = self.ranks.exchange(parts, self.texts, (mine,) * self.ranks.world)
        return came.view(self.ranks.world, mine, *parts.shape[1:])

    def sum_columns(self, parts: Tensor, dtype: torch.dtype) -> Tensor:
        """Parts of every column (N, ...) -> the own columns (N_r, ...), added in ``dtype``."""
        return self.to_columns(parts).sum(0, dtype=dtype).to(parts.dtype)

    def from_columns(self, parts: Tensor) -> Tensor:
        """Its inverse: (W, N_r, k) -> (N, k)."""
        mine = self.texts[self.ranks.rank]
        return self.ranks.exchange(parts.flatten(0, 1), (mine,) * self.ranks.world, self.texts)

    def pairs_to_columns(self, pairs: Tensor) -> Tensor:
        """(P_r,) in slot order of the own images -> (P'_r,) text after text of the own texts."""
        return self.ranks.exchange(pairs[self.order], self.send, self.receive)[self.places]

    def pairs_from_columns(self, pairs: Tensor) -> Tensor:
        """Its inverse."""
        leaving = torch.empty_like(pairs)
        leaving[self.places] = pairs
        came = self.ranks.exchange(leaving, self.receive, self.send)
        back = torch.empty_like(came)
        back[self.order] = came
        return back


def _gather_ids(
    ranks: Ranks, images: tuple[int, ...], texts: tuple[int, ...], ids: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """(M,) and (N,) ids of all rows, in one collective."""
    both = tuple(m + n for m, n in zip(images, texts, strict=True))
    every = ranks.gather(torch.cat(ids), both).split(
        [size for pair in zip(images, texts, strict=True) for size in pair]
    )
    return torch.cat(every[::2]), torch.cat(every[1::2])


def _owners(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The rank of each of some rows of the whole batch."""
    ends = torch.tensor(counts, device=rows.device).cumsum(0)
    return torch.bucketize(rows, ends, right=True)


def _count(owners: Tensor, world: int) -> Tensor:
    counts = torch.zeros(world, dtype=torch.int64, device=owners.device)
    return counts.scatter_add_(0, owners, torch.ones_like(owners))
