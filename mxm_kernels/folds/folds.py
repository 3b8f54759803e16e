"""``Folds``: which image rows and which text rows of a batch show the same instance.

Build it where the batch is built, in the collate function of a DataLoader on the CPU, and move it
with the batch. Then the training step never waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from numbers import Integral
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mxm_kernels.checks import check_dense
from mxm_kernels.folds.make import tables_from_counts, tables_from_ids
from mxm_kernels.folds.tables import FoldTables

Ids = Tensor | np.ndarray | Sequence[int]


class Folds:
    """Which image rows and which text rows of a batch show the same instance.

    An instance is one thing of the data, such as an object with several images and texts. An image
    row and a text row of one instance are a positive pair; all other pairs are negative. Build it
    with :meth:`uniform` or :meth:`from_ids`.

    Example:
        >>> from mxm_kernels import Folds
        >>> Folds.from_ids(image_ids=[7, 7, 3], text_ids=[3, 7, 9])
        Folds(images=3, texts=3, positives=3)
        >>> Folds.uniform(views=6, captions=5)
        Folds.uniform(views=6, captions=5)
    """

    def __init__(
        self, source: tuple[int, int] | FoldTables, ids: tuple[Tensor, Tensor] | None = None
    ) -> None:
        counts = (
            isinstance(source, tuple)
            and len(source) == 2
            and all(type(count) is int and count > 0 for count in source)
        )
        if not counts and not isinstance(source, FoldTables):
            raise TypeError(
                "Folds are made by Folds.uniform(views, captions) or "
                f"Folds.from_ids(image_ids, text_ids), got Folds({type(source).__name__}, ...)"
            )
        self._source = source
        self._ids = ids  # (M,), (N,) int64, of ragged folds

    @classmethod
    def uniform(cls, views: int, captions: int) -> Folds:
        """Folds in which every instance has the same numbers of image rows and of text rows.

        Image row i belongs to instance ``i // views``, text row j to instance ``j // captions``.
        The number of instances follows from the features.

        Args:
            views: consecutive image rows of each instance, at least 1.
            captions: consecutive text rows of each instance, at least 1.

        Raises:
            ValueError: a count is not an integer of at least 1.
        """
        for name, count in (("views", views), ("captions", captions)):
            if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {count!r}")
        return cls((int(views), int(captions)))

    @classmethod
    def from_ids(cls, image_ids: Ids, text_ids: Ids) -> Folds:
        """Folds from an id for each row: rows with the same id show the same instance.

        The rows may be in any order, and instances may have different numbers of rows.

        Args:
            image_ids: (M,) integers of any integer dtype: a tensor, an array or a sequence.
            text_ids: (N,) integers. An id may occur on one side only.

        Ids on a GPU work, but counting their pairs waits for the GPU.

        Raises:
            TypeError: the ids are not integers.
            ValueError: the ids are not one-dimensional or are on different devices.
        """
        image_ids, text_ids = _as_read("image_ids", image_ids), _as_read("text_ids", text_ids)
        image, text = as_ids("image_ids", image_ids), as_ids("text_ids", text_ids)
        if image.device != text.device:
            raise ValueError(
                "image_ids and text_ids must be on one device, "
                f"got {image.device} and {text.device}"
            )
        sides = ("image_ids", image_ids, image), ("text_ids", text_ids, text)
        for (name, ids, wrapped), (_, others, other) in (sides, sides[::-1]):
            # As int64 an id of 2**63 or more is negative, and would meet that id of the other side.
            unlike = _is_uint64(ids) and not _is_uint64(others)
            if unlike and bool((wrapped < 0).any()) and bool((other < 0).any()):
                raise ValueError(
                    f"{name} has uint64 ids of 2**63 or more: the other side must be uint64 too"
                )
        # Copies: a loader may fill the same tensors with the ids of its next batch.
        return cls(tables_from_ids(image, text), (image.clone(), text.clone()))

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Folds:
        """Return the same folds with their vectors on ``device``."""
        if isinstance(self._source, tuple):
            return self
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Folds:
        """Return the same folds in page-locked memory; ``DataLoader(pin_memory=True)`` calls it."""
        if isinstance(self._source, tuple):
            return self
        return self._map(Tensor.pin_memory)

    def __reduce__(self) -> tuple[Any, ...]:
        """What pickle saves: the counts or the ids, from which the tables are made again."""
        return made_from, (self._source if isinstance(self._source, tuple) else self._ids)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Folds:
        assert isinstance(self._source, FoldTables) and self._ids is not None
        ids = function(self._ids[0]), function(self._ids[1])
        return Folds(self._source.map(function), ids)

    def pairs(
        self, images: int, texts: int, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Image row and text row of every positive pair, sorted by image, then by text.

        ``pair_weights`` has this order.

        Args:
            images: M, number of image rows.
            texts: N, number of text rows.
            device: where the result is; the folds of ids have to be there.

        Returns:
            Two (P,) int64 tensors on ``device``: image rows and text rows.

        Example:
            >>> from mxm_kernels import Folds
            >>> image_rows, text_rows = Folds.from_ids([7, 3], [3, 7, 3]).pairs(2, 3)
            >>> image_rows.tolist(), text_rows.tolist()
            ([0, 1, 1], [1, 0, 2])
        """
        # The device of a tensor: "cuda" alone would mean another one after set_device.
        tables = self.tables(images, texts, torch.empty(0, device=device).device)
        # Copies: the tables of uniform folds are kept for every batch of the same size.
        return tables.pair_images.clone(), tables.pair_texts.clone()

    def tables(
        self,
        images: int,
        texts: int,
        device: torch.device,
        names: tuple[str, str, str] = ("folds", "image_features", "text_features"),
    ) -> FoldTables:
        """The positive pairs of ``images`` image rows and ``texts`` text rows on ``device``.

        ``names`` are the argument that errors speak of, and what its two sides describe.

        Raises:
            ValueError: the folds describe other numbers of rows, or are on another device.
        """
        name, first, second = names
        if isinstance(self._source, tuple):
            views, captions = self._source
            if views == captions == 1 and images != texts:
                raise ValueError(
                    f"{name}: without folds, or with (1, 1), row i of both sides is a pair, got "
                    f"{images} rows of {first} and {texts} rows of {second}"
                )
            if images % views or texts % captions or images // views != texts // captions:
                raise ValueError(
                    f"{name}: uniform folds need {views} image rows and {captions} text rows for "
                    f"every instance, got {images} rows of {first} and {texts} rows of {second}"
                )
            return tables_from_counts(views, captions, images // views, device)
        tables = self._source
        if (tables.images, tables.texts) != (images, texts):
            raise ValueError(
                f"{name}: expected ids for {images} rows of {first} and {texts} rows of "
                f"{second}, got {tables.images} image ids and {tables.texts} text ids"
            )
        if tables.device != device:
            raise ValueError(
                f"{name} must be on the device of the features, {device}, got {tables.device}; "
                "call folds.to(device)"
            )
        return tables

    @property
    def is_uniform(self) -> bool:
        """Whether the folds were made by :meth:`uniform`."""
        return isinstance(self._source, tuple)

    @property
    def views(self) -> int:
        """Number of image rows of every instance, of uniform folds.

        Raises:
            ValueError: the folds were made from ids, so the numbers may differ.
        """
        if not isinstance(self._source, tuple):
            raise ValueError(
                "views: only folds made by Folds.uniform have one number of views for every "
                "instance, got folds made from ids"
            )
        return self._source[0]

    def ids(
        self,
        images: int,
        texts: int,
        device: torch.device,
        names: tuple[str, str, str] = ("folds", "image_features", "text_features"),
    ) -> tuple[Tensor, Tensor]:
        """An instance id for each row, (M,) and (N,); uniform folds number their instances.

        Raises:
            ValueError: as :meth:`tables`.
        """
        tables = self.tables(images, texts, device, names)
        if self._ids is None:
            return tables.image_groups.long(), tables.text_groups.long()
        return self._ids

    def __repr__(self) -> str:
        if isinstance(self._source, tuple):
            views, captions = self._source
            return f"Folds.uniform(views={views}, captions={captions})"
        t = self._source
        return f"Folds(images={t.images}, texts={t.texts}, positives={t.pairs})"


def made_from(first: int | Tensor, second: int | Tensor) -> Folds:
    """Folds from what was saved: two counts, or two vectors of ids."""
    make: Any = Folds.from_ids if isinstance(first, Tensor) else Folds.uniform
    return make(first, second)


def _as_they_are(folds: Folds) -> tuple[Any, ...]:
    """What another process of this machine gets: the tables too, so it need not make them."""
    return Folds, (folds._source, folds._ids)


ForkingPickler.register(Folds, _as_they_are)
# What torch.load may make of a file that it does not trust. The tables, which kernels do not check,
# are not in it.
torch.serialization.add_safe_globals([made_from])


def is_scalar(value: object) -> bool:
    """Whether it is one number of numpy's or torch's, a 0-d array or tensor included."""
    return isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0


def kind_of(value: object) -> str:
    """The name of the type of ``value`` for an error."""
    name = type(value).__name__
    return f"0-d {name}" if is_scalar(value) else name


def as_ids(name: str, ids: Ids) -> Tensor:
    """Any container of integers as an int64 vector; uint64 keeps its bits, so ids stay distinct."""
    if isinstance(ids, Tensor):
        check_dense(name, ids)
    if not isinstance(ids, Tensor):
        ids = torch.from_numpy(_as_array(name, ids).astype(np.int64))
    elif ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got dtype {ids.dtype}")
    if ids.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {tuple(ids.shape)}")
    return ids.to(torch.int64)


def _as_read(name: str, ids: Ids) -> Tensor | np.ndarray:
    """A tensor as it is, anything else as an array."""
    return ids if isinstance(ids, Tensor) else _as_array(name, ids)


def _as_array(name: str, ids: np.ndarray | Sequence[int]) -> np.ndarray:
    """An array of integers, of uint64 where one is 2**63 or more."""
    if isinstance(ids, (list, tuple)) and any(isinstance(i, (bool, np.bool_)) for i in ids):
        raise TypeError(f"{name} must hold integers, got dtype {np.dtype(bool)}")
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise ValueError(f"{name} must be one-dimensional: {error}") from None
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind in "fO" and array.ndim == 1 and not isinstance(ids, np.ndarray):
        # numpy makes floats of integers below and above 2**63 together, and objects of larger ones.
        numbers = list(ids)
        if all(isinstance(number, Integral) for number in numbers):
            least, most = int(min(numbers)), int(max(numbers))
            if least < 0 or most >= 2**64:
                raise ValueError(
                    f"{name} must be from -2**63 to 2**63 - 1, or from 0 to 2**64 - 1, "
                    f"got {least} to {most}"
                )
            return np.array(numbers, np.uint64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got dtype {array.dtype}")
    return array


def as_one_side(name: str, folds: object, rows: int) -> int | Tensor:
    """The instances of one side's rows: how many consecutive rows each has, or an id for each row.

    Raises:
        TypeError, ValueError: ``folds`` is neither, or does not fit ``rows`` rows of features.
    """
    neither = folds is None or isinstance(folds, (bool, float, str, Folds))
    if neither or (is_scalar(folds) and not isinstance(folds, Integral)):
        raise TypeError(
            f"{name} must be a number of rows or the ids of the rows, got {kind_of(folds)}"
        )
    if isinstance(folds, Integral):
        if int(folds) < 1 or rows % int(folds):
            raise ValueError(
                f"{name}: expected a number of rows that divides the {rows} rows of features, "
                f"got {folds}"
            )
        return int(folds)
    ids = as_ids(name, cast(Ids, folds))
    if len(ids) != rows:
        raise ValueError(
            f"{name}: expected an id for each of the {rows} rows of features, got {len(ids)}"
        )
    return ids


def _is_uint64(ids: Tensor | np.ndarray) -> bool:
    return ids.dtype == (torch.uint64 if isinstance(ids, Tensor) else np.uint64)
