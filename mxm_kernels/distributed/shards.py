"""This rank's part of a batch: its rows and pairs, and who has the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxm_kernels.backends.interface import PairRules
from mxm_kernels.distributed.ranks import Ranks, bounds
from mxm_kernels.folds.make import tables_from_ids, tables_without_pairs
from mxm_kernels.folds.segments import Segments
from mxm_kernels.folds.tables import FoldTables, PairTables


@dataclass(frozen=True, eq=False)
class Shard:
    """This rank's part of a batch: which rows and pairs, and who has the others."""

    ranks: Ranks
    images: tuple[int, ...]  # image rows of each rank
    texts: tuple[int, ...]
    tables: FoldTables  # of the whole batch
    row_tables: PairTables  # this rank's images against all texts
    segments: Segments  # the positives of this rank's images, then of its texts
    places: tuple[slice, slice]  # where these two are among the 2 P positives of the batch
    send: tuple[int, ...]  # pairs of this rank's images with a text of each rank
    receive: tuple[int, ...]  # pairs of this rank's texts with an image of each rank
    sent_slots: Tensor  # (P_r,) slots of this rank's images' pairs, by the rank of their text
    came_from: Tensor  # (P'_r,) where each pair of this rank's texts is among those that came
    ring: bool = False  # the texts come block by block around a ring

    @classmethod
    def of(
        cls,
        ranks: Ranks,
        images: tuple[int, ...],
        texts: tuple[int, ...],
        tables: FoldTables,
        *,
        ring: bool = False,
    ) -> Shard:
        """From the rows of each rank and the tables of the whole batch; it sends nothing."""
        rows, cols = bounds(images, ranks.rank), bounds(texts, ranks.rank)
        row_tables, row_places = tables.rows(rows)
        columns, column_places = tables.columns(cols)
        pairs = tables.pairs
        slots = tables.text_slots[column_places.start - pairs : column_places.stop - pairs]
        text_owner_ranks = _owner_ranks(row_tables.pair_texts, texts)
        image_owner_ranks = _owner_ranks(tables.pair_images[slots], images)
        send, receive = torch.stack(
            [_count(text_owner_ranks, ranks.world), _count(image_owner_ranks, ranks.world)]
        ).tolist()
        # Pairs travel sorted by image, then text, which is the order of slots.
        came_from = torch.empty_like(slots)
        came_from[slots.argsort()] = torch.arange(len(slots), device=slots.device)
        return cls(
            ranks,
            images,
            texts,
            tables,
            row_tables,
            _joined(row_tables, columns),
            (row_places, column_places),
            tuple(send),
            tuple(receive),
            text_owner_ranks.argsort(stable=True),
            came_from,
            ring,
        )

    def block(self, rank: int) -> tuple[PairTables, Tensor]:
        """The tables of this rank's images with the texts of ``rank``, and the pairs' slots."""
        texts, mine = bounds(self.texts, rank), self.row_tables
        slots = self.sent_slots.split(self.send)[rank]
        images = mine.owners[slots]
        offsets = images.new_zeros(len(mine.image_groups) + 1)
        torch.cumsum(_count(images, len(offsets) - 1), 0, out=offsets[1:])
        tables = PairTables.of_slots(
            mine.image_groups,
            mine.text_groups[texts],
            offsets,
            images,
            mine.pair_texts[slots] - texts.start,
        )
        return tables, slots

    def local_rows(self, rows: Tensor) -> Tensor:
        """(M + N,) -> (M_r + N_r,): the entries of this rank's rows."""
        rank, images = self.ranks.rank, sum(self.images)
        first, second = bounds(self.images, rank), bounds(self.texts, rank)
        return torch.cat([rows[:images][first], rows[images:][second]])

    def local_positives(self, positives: Tensor) -> Tensor:
        """(2 P,) -> (P_r + P'_r,): the entries of the positives of this rank's rows."""
        return torch.cat([positives[place] for place in self.places])

    def with_every_text(self, rules: PairRules, images: int) -> PairRules:
        """Rules (M_r + N_r,) -> (M_r + N,): of this rank's images and of the texts of all ranks."""
        return PairRules(
            *[
                None
                if rule is None
                else torch.cat([rule[:images], self.ranks.gather(rule[images:], self.texts)])
                for rule in rules
            ]
        )

    def rules_of_block(self, rules: PairRules, owner: int, images: int) -> PairRules:
        """Rules (M_r + N,) -> (M_r + N_o,): of this rank's images and of the texts of ``owner``."""
        texts = bounds(self.texts, owner)
        return PairRules(
            *[
                None if rule is None else torch.cat([rule[:images], rule[images:][texts]])
                for rule in rules
            ]
        )

    def of_own_texts(self, doffsets: Tensor, images: int) -> Tensor:
        """Gradients (M_r + N,) by offsets of every text -> (M_r + N_r,), summed over the ranks."""
        own = self.sum_columns(doffsets[images:], doffsets.dtype)
        return torch.cat([doffsets[:images], own])

    def to_columns(self, parts: Tensor) -> Tensor:
        """Parts of every column (N, k) -> those of this rank's columns, by rank (W, N_r, k)."""
        mine = self.texts[self.ranks.rank]
        came = self.ranks.exchange(parts, self.texts, (mine,) * self.ranks.world)
        return came.view(self.ranks.world, mine, *parts.shape[1:])

    def sum_columns(self, parts: Tensor, dtype: torch.dtype) -> Tensor:
        """Parts of every column (N, ...) -> this rank's columns (N_r, ...), added in ``dtype``."""
        return self.to_columns(parts).sum(0, dtype=dtype).to(parts.dtype)

    def from_columns(self, parts: Tensor) -> Tensor:
        """The inverse of :meth:`to_columns`: (W, N_r, k) -> (N, k)."""
        mine = self.texts[self.ranks.rank]
        return self.ranks.exchange(parts.flatten(0, 1), (mine,) * self.ranks.world, self.texts)

    def pairs_to_columns(self, pairs: Tensor) -> Tensor:
        """(P_r,) of this rank's images in slot order -> (P'_r,) of its texts, text after text."""
        return self.ranks.exchange(pairs[self.sent_slots], self.send, self.receive)[self.came_from]

    def pairs_from_columns(self, pairs: Tensor) -> Tensor:
        """The inverse of :meth:`pairs_to_columns`."""
        leaving = torch.empty_like(pairs)
        leaving[self.came_from] = pairs
        came = self.ranks.exchange(leaving, self.receive, self.send)
        back = torch.empty_like(came)
        back[self.sent_slots] = came
        return back

    def slot_gradients(self, dS: Tensor) -> Tensor:
        """(P_r + P'_r,) of this rank's positives -> (P_r,) of its images' pairs, in slot order.

        A pair's gradient is the sum over its two places. The second may be on another rank.
        """
        pairs = len(self.sent_slots)
        return dS[:pairs] + self.pairs_from_columns(dS[pairs:])


def at_first_places(slots: Tensor) -> Tensor:
    """(P,) in slot order -> (2 P,): the list of positives, with 0 at the second place of a pair.

    The operator's backward adds up the upstream gradients of a pair's two places.
    """
    return torch.cat([slots, torch.zeros_like(slots)])


def tables_over_ranks(
    ranks: Ranks,
    images: tuple[int, ...],
    texts: tuple[int, ...],
    ids: tuple[Tensor, Tensor] | None,
    device: torch.device,
) -> FoldTables:
    """The tables of the whole batch, from the ids of this rank's rows, (M_r,) and (N_r,).

    Without ids no pair is positive, and nothing is sent.
    """
    if ids is None:
        return tables_without_pairs(sum(images), sum(texts), device)
    return tables_from_ids(*_gather_ids(ranks, images, texts, ids))


def _joined(rows: PairTables, columns: Segments) -> Segments:
    """The segments of this rank's images and those of its texts, as one list."""
    images, pairs = len(rows.image_groups), len(rows.pair_texts)
    return Segments(
        torch.cat([rows.offsets[: images + 1], columns.offsets[1:] + pairs]),
        torch.cat([rows.owners[:pairs], columns.owners + images]),
    )


def _gather_ids(
    ranks: Ranks, images: tuple[int, ...], texts: tuple[int, ...], ids: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """(M,) and (N,) ids of all rows, in one collective."""
    both = tuple(m + n for m, n in zip(images, texts, strict=True))
    every = ranks.gather(torch.cat(ids), both).split(
        [size for pair in zip(images, texts, strict=True) for size in pair]
    )
    return torch.cat(every[::2]), torch.cat(every[1::2])


def _owner_ranks(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The rank of each of some rows of the whole batch."""
    ends = torch.tensor(counts, device=rows.device).cumsum(0)
    return torch.bucketize(rows, ends, right=True)


def _count(owners: Tensor, world: int) -> Tensor:
    counts = torch.zeros(world, dtype=torch.int64, device=owners.device)
    return counts.scatter_add_(0, owners, torch.ones_like(owners))
