"""A batch as micro-batches: its inputs cut into parts, the encoder's outputs put together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from itertools import chain, pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map_only,
    tree_unflatten,
)

from mxm_kernels.gradient_cache.encoders import name_of

T = TypeVar("T")
BIND = (
    "bind a tensor whose first dimension is not the batch to the encoder, as in "
    "functools.partial(encoder, positions=positions)"
)


@dataclass
class MicroBatch:
    """The inputs of one micro-batch.

    Inputs of M and of N rows are cut differently: what belongs to each has M or N as its key.
    """

    inputs: list[Any]  # leaves of (args, kwargs)
    spec: TreeSpec
    rows: dict[int, slice]  # which rows these are; none, where the last row is repeated
    given: dict[int, int]  # how many rows the encoder is given
    versions: list[int]  # how often each tensor had been written to when it was cut

    def run(self, encoder: Callable[..., T]) -> T:
        """What the encoder returns for them."""
        args, kwargs = tree_unflatten(self.inputs, self.spec)
        return encoder(*args, **kwargs)

    def check_unchanged(self) -> None:
        """The second pass needs what the first one saw.

        Raises:
            RuntimeError: an input was written to since it was cut.
        """
        if _versions(self.inputs) != self.versions:
            raise RuntimeError(
                "an input of encode was changed in place before cache.backward(), which encodes it "
                "again: pass a copy; or, if its step was skipped, call cache.reset() there, or put "
                "each step into a `with cache:`"
            )


class Inputs:
    """What an encoder is called with, and how it is cut.

    Raises:
        TypeError: an input is of a type that cannot be cut.
        ValueError: no tensor has rows, or one wants a gradient.
    """

    def __init__(self, args: tuple, kwargs: dict) -> None:
        self.leaves, self.spec = tree_flatten((args, kwargs))
        for leaf in self.leaves:
            _check_input(leaf)
        given = {f"argument {k}": value for k, value in enumerate(args)} | kwargs
        names = chain.from_iterable(_names(name, value) for name, value in given.items())
        self.named = [
            (name, leaf) for name, leaf in zip(names, self.leaves, strict=True) if _has_rows(leaf)
        ]
        if not self.named:
            raise ValueError("encode: expected a tensor with rows among the inputs, got none")
        self.totals = sorted({len(tensor) for _, tensor in self.named})

    def parts_of(self, micro_batch: int) -> int:
        """The fewest parts that keep each at ``micro_batch`` rows or less."""
        return max(1, -(-self.totals[-1] // micro_batch))

    def check_has_rows(self) -> None:
        """No tensor is empty, so each has a last row to repeat.

        Raises:
            ValueError: one is.
        """
        for name, tensor in self.named:
            if not len(tensor):
                raise ValueError(
                    f"encode: {name} must have a row on every rank that shares a sharded module, "
                    "got none"
                )

    def cut(self, count: int) -> list[MicroBatch]:
        """Cut every tensor with rows into ``count`` parts, none of them empty.

        Where its rows run out, the last one is repeated: once, or as often as it takes to tell
        it from another input by the number of rows. An input without rows stays as it is.
        """
        rows = {total: _split(total, count) for total in self.totals}
        return [self._part({total: rows[total][k] for total in rows}) for k in range(count)]

    def _part(self, rows: dict[int, slice]) -> MicroBatch:
        real = {place.stop - place.start for place in rows.values()}
        fill = next(n for n in range(1, len(rows) + 2) if n not in real)
        inputs = [
            _rows(leaf, rows[len(leaf)], fill) if _has_rows(leaf) else leaf for leaf in self.leaves
        ]
        given = {
            total: place.stop - place.start or (fill if total else 0)
            for total, place in rows.items()
        }
        return MicroBatch(inputs, self.spec, rows, given, _versions(inputs))

    def check_used(self, totals: set[int]) -> None:
        """Every tensor is rows: an output has as many.

        Raises:
            ValueError: one is not, among several.
        """
        for name, tensor in self.named:
            if len(self.totals) > 1 and len(tensor) not in totals:
                raise ValueError(
                    "encode: every tensor is cut along its first dimension, so an output must have "
                    f"a row for every row of {name}, got none for its shape "
                    f"{tuple(tensor.shape)}; {BIND}"
                )

    def first_pass(self, encoder: Callable[..., T], part: MicroBatch) -> T:
        """What the encoder returns, without a graph.

        Raises:
            ValueError: it refuses the part, perhaps since what was cut is not rows.
        """
        try:
            output = part.run(encoder)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            whole = all(place == slice(0, total) for total, place in part.rows.items())
            if whole or len(self.totals) == 1:
                raise
            given = ", ".join(
                f"{part.given[len(tensor)]} for the {len(tensor)} rows of {name}"
                for name, tensor in self.named
            )
            raise ValueError(
                f"encode: {name_of(encoder)} refused a micro-batch of {given}: every tensor is "
                f"cut along its first dimension; {BIND}"
            ) from error
        return tree_map_only(Tensor, Tensor.detach, output)  # an encoder may turn gradients on


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


def _names(argument: str, value: Any) -> list[str]:
    """What each leaf of an argument is called, for instance ``tokens['ids']``."""
    try:
        return [f"{argument}{keystr(path)}" for path, _ in tree_flatten_with_path(value)[0]]
    except ValueError:  # a type that was registered without the names of its parts
        return [argument] * len(tree_leaves(value))


def _split(total: int, count: int) -> list[slice]:
    """Rows 0 to ``total`` in ``count`` parts as even as they can be, the longer ones first."""
    short, longer = divmod(total, count)
    ends = [k * short + min(k, longer) for k in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _rows(tensor: Tensor, place: slice, fill: int) -> Tensor:
    if place.start < place.stop or not len(tensor):
        return tensor[place]
    return tensor[-1:] if fill == 1 else torch.cat([tensor[-1:]] * fill)


def _versions(inputs: list[Any]) -> list[int]:
    """Of every tensor; one of inference mode does not count its changes."""
    tensors = (leaf for leaf in inputs if isinstance(leaf, Tensor))
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


_PASSED_ON = (bool, int, float, str, bytes, torch.dtype, torch.device, type(None))


def _check_input(leaf: Any) -> None:
    if isinstance(leaf, Tensor):
        if leaf.requires_grad:
            raise ValueError(
                "encode: an input requires a gradient, which a gradient cache gives to parameters "
                "only; detach it, or make what computes it a part of the encoder"
            )
    elif not isinstance(leaf, _PASSED_ON):
        advice = "call dict() on it" if isinstance(leaf, Mapping) else "pass its tensors"
        if is_dataclass(leaf):
            advice = "pass its fields"
        raise TypeError(
            "encode: inputs must be tensors and plain values in tuples, lists and dicts, got "
            f"{type(leaf).__name__}; {advice}"
        )


@dataclass
class Joined:
    """The encoder's outputs for the whole batch."""

    features: list[Tensor | None]
    totals: list[int | None]  # rows of the input that each belongs to; None: 0-d, or no tensor
    spec: TreeSpec


def join(outputs: list[Any], parts: list[MicroBatch]) -> Joined:
    """Concatenate the rows of the micro-batches' outputs; a 0-d output is taken once."""
    flat, specs = zip(*(tree_flatten(output) for output in outputs), strict=True)
    kinds = [[getattr(leaf, "ndim", None) for leaf in leaves] for leaves in flat]
    if any(spec != specs[0] for spec in specs) or any(kind != kinds[0] for kind in kinds):
        raise ValueError("encode: the encoder returned another structure for another micro-batch")
    columns = list(zip(*flat, strict=True))
    totals = [_total(column, parts) for column in columns]
    features = [
        _concatenate(column, total, parts) for column, total in zip(columns, totals, strict=True)
    ]
    return Joined(features, totals, specs[0])


def _total(column: tuple[Any, ...], parts: list[MicroBatch]) -> int | None:
    """Which inputs an output has the rows of: those with as many in every micro-batch."""
    if column[0] is None:
        return None
    for leaf in column:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"encode: the encoder must return tensors, got {type(leaf).__name__}")
    if column[0].ndim == 0:
        return None
    fitting = set(parts[0].given)
    for leaf, part in zip(column, parts, strict=True):
        expected = {part.given[total] for total in fitting}
        fitting = {total for total in fitting if part.given[total] == len(leaf)}
        if not fitting:
            raise ValueError(
                "encode: the encoder must return a row for every row of an input, "
                f"{' or '.join(map(str, sorted(expected)))} in this micro-batch, or a 0-d "
                f"tensor, got shape {tuple(leaf.shape)}"
            )
    (total,) = fitting
    return total


def _concatenate(
    column: tuple[Tensor | None, ...], total: int | None, parts: list[MicroBatch]
) -> Tensor | None:
    first = column[0]
    if total is None:
        return None if first is None else first.clone()
    kept = [
        leaf
        for leaf, part in zip(cast(tuple[Tensor, ...], column), parts, strict=True)
        if part.rows[total].start < part.rows[total].stop
    ]
    return torch.cat(kept or [cast(Tensor, first)])
