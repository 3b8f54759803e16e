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
SIZES = 8


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
    kept: bool = False  # for the next batch of this size, with the numbers computed from them

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
        """The tables that the operator reads."""
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


def lasts(device: torch.device) -> bool:
    """Whether a tensor made now is what it seems and stays.

    Not while PyTorch traces, nor while a CUDA graph is captured, whose memory pool would own it.
    """
    return not (
        torch.compiler.is_compiling()
        or _get_current_dispatch_mode() is not None
        or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    )


def kept_with_tables(
    make: Callable[Concatenate[FoldTables, _P], _T],
) -> Callable[Concatenate[FoldTables, _P], _T]:
    """Keep a function's results for tables that are kept, which saves up to 16 launches a step."""
    remembered: Any = lru_cache(maxsize=SIZES)(torch.inference_mode(False)(make))

    @wraps(make)
    def of_tables(tables: FoldTables, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        keep = tables.kept and lasts(tables.device)
        return (remembered if keep else make)(tables, *args, **kwargs)

    return of_tables
