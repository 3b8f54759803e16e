"""Masked random pair selection: how often each positive of a row is drawn in R rounds.

The rounds of the paper only change the weights of the positives, w_ik = (times k was drawn) / R:
R rounds cost what one costs, and w_ik = 1 / |Pos(i)| is their exact expectation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels.backends import pairs
from mxm_kernels.backends.problem import Draw
from mxm_kernels.fold_tables import FoldTables, kept_with_tables
from mxm_kernels.operators import rows as row_operator
from mxm_kernels.segments import permute

_INVALID = -2  # mark of an entry that is no positive pair

Weights = tuple[Tensor, Tensor]  # (P,) of rows in slot order, (P,) of columns in text-major order


def _random(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """Not negative, over all of an integer ``dtype``, from ``generator`` wherever that is."""
    if torch.compiler.is_compiling():  # which cannot trace random_
        return torch.randint(torch.iinfo(dtype).max, shape, dtype=dtype, device=device)
    if generator is None:
        return torch.empty(shape, dtype=dtype, device=device).random_()
    # Page-locked, so that the copy to a GPU does not wait for it.
    pinned = device.type == "cuda" and generator.device.type == "cpu"
    made = torch.empty(shape, dtype=dtype, device=generator.device, pin_memory=pinned)
    return made.random_(generator=generator).to(device, non_blocking=True)


def _draw(
    offsets: tuple[Tensor, Tensor], rounds: int, generator: torch.Generator | None, pairs: int
) -> Draw:
    """A draw of one positive of every row and column, ``rounds`` times, from one random number."""
    seed = _random((), torch.int64, generator, offsets[0].device)
    return Draw(seed, *offsets, rounds, pairs)


def draw_places(
    tables: FoldTables, rounds: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draw one positive of every row and column, ``rounds`` times, with replacement.

    Returns places (R, M) in slot order and (R, N) in text-major order, -1 for a row without
    a positive.
    """
    offsets = tables.image_offsets, tables.text_offsets
    return pairs.draw_places(_draw(offsets, rounds, generator, tables.pairs))


def drawn_weights(
    tables: FoldTables,
    rounds: int,
    generator: torch.Generator | None,
    dtype: torch.dtype,
    backend: str,
) -> Weights:
    """Weights of ``rounds`` random rounds."""
    offsets = tables.image_offsets, tables.text_offsets
    draw = _draw(offsets, rounds, generator, tables.pairs)
    return row_operator.drawn_weights(draw, dtype, backend)


def drawn_frequencies(
    offsets: Tensor,
    rounds: int,
    generator: torch.Generator | None,
    positives: int,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """(P,) weights of ``rounds`` random rounds over segments of positives of one side."""
    nothing = offsets.new_zeros(1)  # no row on the other side
    draw = _draw((offsets, nothing), rounds, generator, positives)
    return row_operator.drawn_weights(draw, dtype, backend)[0]


@kept_with_tables
def expected_weights(tables: FoldTables, dtype: torch.dtype) -> Weights:
    """The limit of infinitely many rounds: every positive of a row weighs the same."""
    rows = tables.image_offsets.diff()[tables.pair_images]
    cols = tables.text_offsets.diff()[tables.text_owners]
    return 1 / rows.to(dtype), 1 / cols.to(dtype)


def draw_rows(
    rows: int,
    share: float,
    generator: torch.Generator | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """(rows,) 1 for a random ``share`` of the rows, rounded to whole rows, 0 for the others."""
    order = _random((rows,), torch.int32, generator, device).argsort()
    chosen = torch.zeros(rows, dtype=dtype, device=device)
    chosen[order[: round(share * rows)]] = 1
    return chosen


def _one_positive_each(tables: FoldTables) -> bool:
    """Whether every row of either side that has a positive has one."""
    return tables.pairs == tables.images_with_positive == tables.texts_with_positive


@kept_with_tables
def paired_weights(tables: FoldTables, dtype: torch.dtype) -> Weights:
    """One positive for every row: the k-th image of an instance goes with its k-th text.

    Where the counts differ, the k-th of the more goes with the (k modulo count)-th of the
    fewer: the diagonal of the group, walked again and again.
    """
    if _one_positive_each(tables):
        ones = torch.ones(tables.pairs, dtype=dtype, device=tables.device)
        return ones, ones
    image_counts, text_counts = tables.image_offsets.diff(), tables.text_offsets.diff()
    places = torch.arange(tables.pairs, device=tables.device)
    text_rank = places - tables.image_offsets[tables.pair_images]  # in slot order
    image_rank = places - tables.text_offsets[tables.text_owners]  # in text-major order
    rows = text_rank == image_rank[tables.slot_places] % image_counts[tables.pair_images]
    cols = image_rank == text_rank[tables.text_slots] % text_counts[tables.text_owners]
    return rows.to(dtype), cols.to(dtype)


def own_weights(tables: FoldTables, weights: tuple[Tensor, Tensor], dtype: torch.dtype) -> Weights:
    """Weights that the caller computed, both (P,) in the order of :meth:`Folds.pairs`.

    Raises:
        TypeError, ValueError: they are not two floating-point (P,) tensors.
    """
    rows, cols = in_slots(tables, weights, dtype)
    return rows, permute(cols, tables.text_slots, tables.slot_places)


def in_slots(
    tables: FoldTables, weights: tuple[Tensor, Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same weights, checked, both in slot order as they came."""
    made = []
    for k, vector in enumerate(weights):
        name = f"pair_weights[{k}]"
        if not isinstance(vector, Tensor) or not vector.dtype.is_floating_point:
            came = vector.dtype if isinstance(vector, Tensor) else type(vector).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {came}")
        if vector.shape != (tables.pairs,):
            raise ValueError(
                f"{name} must have shape ({tables.pairs},), one for each of Folds.pairs, "
                f"got {tuple(vector.shape)}"
            )
        if vector.device != tables.device:
            raise ValueError(
                f"{name} must be on the device of the features, {tables.device}, "
                f"got {vector.device}"
            )
        made.append(vector.to(dtype))
    return made[0], made[1]


def given_weights(
    tables: FoldTables, selection: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Weights:
    """Weights of rounds drawn by the caller.

    Args:
        tables: the positive pairs.
        selection: image_to_text (R, M) and text_to_image (R, N), each entry the drawn positive
            of its row as an index into the other modality, -1 for a row without a positive.
        dtype: dtype of the weights.

    Raises:
        ValueError: a shape is wrong or an entry is outside its row's group. Inside
            torch.compile, where data cannot be looked at, such an entry makes the loss NaN.
    """
    image_to_text, text_to_image = selection
    _check_entries("selection[0]", image_to_text, tables.images, tables.device)
    _check_entries("selection[1]", text_to_image, tables.texts, tables.device)
    rounds = image_to_text.shape[0]
    if text_to_image.shape[0] != rounds:
        raise ValueError(
            "selection must have the same number of rounds for both modalities, "
            f"got {rounds} and {text_to_image.shape[0]}"
        )
    image_rows = torch.arange(tables.images, device=tables.device).expand(rounds, -1)
    text_rows = torch.arange(tables.texts, device=tables.device).expand(rounds, -1)
    slots = _slots(tables, image_rows, image_to_text, tables.image_offsets, "selection[0]")
    crossed = _slots(tables, text_to_image, text_rows, tables.text_offsets, "selection[1]")
    places = torch.where(crossed < 0, crossed, tables.slot_places[crossed.clamp(min=0)])
    weights = (
        pairs.frequencies(slots, tables.pairs, dtype),
        pairs.frequencies(places, tables.pairs, dtype),
    )
    if not torch.compiler.is_compiling():
        return weights
    return (
        torch.where((slots == _INVALID).any(), torch.nan, weights[0]),
        torch.where((places == _INVALID).any(), torch.nan, weights[1]),
    )


def _slots(tables: FoldTables, images: Tensor, texts: Tensor, offsets: Tensor, name: str) -> Tensor:
    """Slot of each (image, text) pair, -1 where a row has no positive, _INVALID for no pair."""
    absent = (images == -1) | (texts == -1)
    i, j = images.clamp(0, tables.images - 1), texts.clamp(0, tables.texts - 1)
    paired = tables.image_groups[i] == tables.text_groups[j]
    paired = paired & (images == i) & (texts == j)
    no_positive = (offsets.diff() == 0).expand_as(absent)
    valid = torch.where(absent, no_positive, paired)
    if not torch.compiler.is_compiling() and not bool(valid.all()):
        round_, row = (~valid).nonzero()[0].tolist()
        came = (images if name == "selection[1]" else texts)[round_, row].item()
        expected = "-1" if no_positive[round_, row] else "a positive of the row"
        raise ValueError(f"{name}: expected {expected} in round {round_}, row {row}, got {came}")
    slots = tables.image_offsets[i] + tables.text_ranks[j]
    return torch.where(valid, torch.where(absent, -1, slots), _INVALID)


def _check_entries(name: str, entries: Tensor, rows: int, device: torch.device) -> None:
    if not isinstance(entries, Tensor) or entries.dtype not in (torch.int32, torch.int64):
        came = entries.dtype if isinstance(entries, Tensor) else type(entries).__name__
        raise TypeError(f"{name} must be a tensor of int64 or int32, got {came}")
    if entries.ndim != 2 or entries.shape[0] < 1 or entries.shape[1] != rows:
        raise ValueError(f"{name} must have shape (rounds, {rows}), got {tuple(entries.shape)}")
    if entries.device != device:
        raise ValueError(
            f"{name} must be on the device of the features, {device}, got {entries.device}"
        )
