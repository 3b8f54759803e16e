"""The weights of the positives: how often each is drawn, which one is the pair, all alike.

The rounds of the paper only change the weights of the positives, w_ik = (times k was drawn) / R:
R rounds cost what one costs, and w_ik = 1 / |Pos(i)| is their exact expectation. Weights are in
the order of the list of 2 P positives: slot order, then text-major order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mxm_kernels import checks
from mxm_kernels.backends import draws
from mxm_kernels.backends.row_interface import Draw
from mxm_kernels.core.batch import Batch
from mxm_kernels.core.symbols import is_symbol
from mxm_kernels.folds.segments import Segments, permute
from mxm_kernels.folds.tables import FoldTables, kept_with_tables
from mxm_kernels.ops.draw import drawn_weights as _drawn_weights

_INVALID = -2  # mark of an entry that is no positive pair


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
    segments: Segments, rounds: int, generator: torch.Generator | None, positives: int
) -> Draw:
    """A draw of one positive of every row, ``rounds`` times, from one random number."""
    seed = _random((), torch.int64, generator, segments.offsets.device)
    return Draw(seed, segments.offsets, rounds, positives)


def draw_places(tables: FoldTables, rounds: int, generator: torch.Generator | None) -> Tensor:
    """(rounds, M + N) the drawn place of every row among the 2 P positives, -1 without one."""
    return draws.draw_places(_draw(tables.segments, rounds, generator, 2 * tables.pairs))


def drawn_weights(batch: Batch, segments: Segments, positives: int, rounds: int) -> Tensor:
    """(L,) weights of ``rounds`` random rounds over any ``segments`` of L positives."""
    draw = _draw(segments, rounds, batch.generator, positives)
    return _drawn_weights(draw, batch.dtype, batch.backend)


@kept_with_tables
def expected_weights(tables: FoldTables, dtype: torch.dtype) -> Tensor:
    """(2 P,) the limit of infinitely many rounds: every positive of a row weighs the same."""
    return 1 / tables.offsets.diff()[tables.owners].to(dtype)


def draw_rows(batch: Batch, share: float) -> Tensor:
    """(R,) 1 for a random ``share`` of the rows of either side, 0 for the others.

    The share is rounded to whole rows, over all ranks. None or all of them need no draw.
    """
    tables, device = batch.tables, batch.x.device
    if share in (0, 1):
        rows = len(batch.x) + len(batch.y)
        return torch.full((rows,), share, dtype=batch.dtype, device=device)
    sides = [tables.images, tables.texts]
    numbers = _random((sum(sides),), torch.int32, batch.generator, device)
    chosen = torch.zeros(sum(sides), dtype=batch.dtype, device=device)
    for side, of_side in zip(chosen.split(sides), numbers.split(sides), strict=True):
        if is_symbol(share):  # as would be the length of an index
            drawn_rows = torch.ones((), dtype=torch.float64, device=device) * share * len(side)
            side.copy_(of_side.argsort().argsort() < drawn_rows.round())
            continue
        drawn = of_side.topk(round(share * len(side)), largest=False, sorted=False).indices
        side.index_fill_(0, drawn, 1)
    return batch.local_rows(chosen)


def _one_positive_each(tables: FoldTables) -> bool:
    """Whether every row of either side that has a positive has one."""
    return tables.pairs == tables.images_with_positive == tables.texts_with_positive


@kept_with_tables
def paired_weights(tables: FoldTables, dtype: torch.dtype) -> Tensor:
    """(2 P,) one positive for every row: the k-th image of an instance goes with its k-th text.

    Where the counts differ, the k-th of the more goes with the (k modulo count)-th of the
    fewer: the diagonal of the group, walked again and again.
    """
    if _one_positive_each(tables):
        return torch.ones(2 * tables.pairs, dtype=dtype, device=tables.device)
    counts, places = tables.offsets.diff(), torch.arange(2 * tables.pairs, device=tables.device)
    position = places - tables.offsets[tables.owners]  # of the other row within the instance
    pairs = tables.pairs
    text_position, image_position = position[:pairs], position[pairs:]  # slots, text-major
    # An owner has a positive. In code that torch.compile generates for vectors, lanes of padding
    # count 0, and a remainder by 0 is an error there.
    counts = counts.clamp(min=1)
    row_counts, col_counts = counts[tables.owners[:pairs]], counts[tables.owners[pairs:]]
    rows = text_position == image_position[tables.slot_places] % row_counts
    cols = image_position == text_position[tables.text_slots] % col_counts
    return torch.cat([rows, cols]).to(dtype)


def local_weights(batch: Batch, own: Callable[[FoldTables, torch.dtype], Tensor]) -> Tensor:
    """(L,) weights of this process's positives: those that the caller gave, else the loss's own.

    ``own`` makes (2 P,) weights of the positives of all ranks.
    """
    tables, dtype, given = batch.tables, batch.dtype, batch.options.pair_weights
    made = own(tables, dtype) if given is None else given_pair_weights(tables, given, dtype)
    return batch.local_positives(made)


def given_pair_weights(
    tables: FoldTables, pair_weights: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Tensor:
    """(2 P,) weights that the caller computed, both (P,) in the order of :meth:`Folds.pairs`.

    Raises:
        TypeError, ValueError: they are not two floating-point (P,) tensors.
    """
    rows, cols = in_slots(tables, pair_weights, dtype)
    return torch.cat([rows, permute(cols, tables.text_slots, tables.slot_places)])


def in_slots(
    tables: FoldTables, weights: tuple[Tensor, Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Check the caller's pair weights, and return both directions in slot order, in ``dtype``."""
    made = []
    for k, vector in enumerate(weights):
        name = f"pair_weights[{k}]"
        if not isinstance(vector, Tensor) or not vector.dtype.is_floating_point:
            came = vector.dtype if isinstance(vector, Tensor) else type(vector).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {came}")
        checks.check_dense(name, vector)
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
        # Infinite weights are NaN, as then the loss is.
        made.append(torch.add(vector.to(dtype), vector.detach(), alpha=0))
    return made[0], made[1]


def selected_weights(
    tables: FoldTables, selection: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Tensor:
    """(2 P,) weights of rounds drawn by the caller.

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
    rounds, images, pairs = image_to_text.shape[0], tables.images, tables.pairs
    if text_to_image.shape[0] != rounds:
        raise ValueError(
            "selection must have the same number of rounds for both modalities, "
            f"got {rounds} and {text_to_image.shape[0]}"
        )
    image_rows = torch.arange(images, device=tables.device).expand(rounds, -1)
    text_rows = torch.arange(tables.texts, device=tables.device).expand(rounds, -1)
    counts = tables.offsets.diff()
    slots = _slots(tables, image_rows, image_to_text, counts[:images], "selection[0]")
    crossed = _slots(tables, text_to_image, text_rows, counts[images:], "selection[1]")
    places = torch.where(crossed < 0, crossed, tables.slot_places[crossed.clamp(min=0)] + pairs)
    every = torch.cat([slots, places], 1)
    weights = draws.frequencies(every, 2 * pairs, dtype)
    if not torch.compiler.is_compiling():
        return weights
    return torch.where((every == _INVALID).any(), torch.nan, weights)


def _slots(tables: FoldTables, images: Tensor, texts: Tensor, counts: Tensor, name: str) -> Tensor:
    """Slot of each (image, text) pair, -1 where a row has no positive, _INVALID for no pair."""
    absent = (images == -1) | (texts == -1)
    i, j = images.clamp(0, tables.images - 1), texts.clamp(0, tables.texts - 1)
    paired = tables.image_groups[i] == tables.text_groups[j]
    paired = paired & (images == i) & (texts == j)
    no_positive = (counts == 0).expand_as(absent)
    valid = torch.where(absent, no_positive, paired)
    if not torch.compiler.is_compiling() and not bool(valid.all()):
        round_, row = (~valid).nonzero()[0].tolist()
        came = (images if name == "selection[1]" else texts)[round_, row].item()
        expected = "-1" if no_positive[round_, row] else "a positive of the row"
        raise ValueError(f"{name}: expected {expected} in round {round_}, row {row}, got {came}")
    slots = tables.offsets[i] + tables.text_positions[j]
    return torch.where(valid, torch.where(absent, -1, slots), _INVALID)


def _check_entries(name: str, entries: Tensor, rows: int, device: torch.device) -> None:
    if not isinstance(entries, Tensor) or entries.dtype not in (torch.int32, torch.int64):
        came = entries.dtype if isinstance(entries, Tensor) else type(entries).__name__
        raise TypeError(f"{name} must be a tensor of int64 or int32, got {came}")
    checks.check_dense(name, entries)
    if entries.ndim != 2 or entries.shape[0] < 1 or entries.shape[1] != rows:
        raise ValueError(f"{name} must have shape (rounds, {rows}), got {tuple(entries.shape)}")
    if entries.device != device:
        raise ValueError(
            f"{name} must be on the device of the features, {device}, got {entries.device}"
        )
