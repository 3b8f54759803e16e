"""A batch as micro-batches: its inputs cut into parts, the encoder's outputs put together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

T = TypeVar("T")


@dataclass
class MicroBatch:
    """The inputs of one micro-batch."""

    inputs: list[Any]  # leaves of (args, kwargs)
    spec: TreeSpec
    rows: set[int]  # first dimension of every tensor that was cut
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
                "again: pass a copy"
            )

    def devices(self, modules: tuple[nn.Module, ...]) -> set[torch.device]:
        """Where this part is computed: the devices of its tensors and of the parameters."""
        tensors = [leaf for leaf in self.inputs if isinstance(leaf, Tensor)]
        return {t.device for t in tensors} | {p.device for m in modules for p in m.parameters()}


def cut(args: tuple, kwargs: dict, micro_batch: int) -> list[MicroBatch]:
    """Cut every tensor with rows into the same number of parts."""
    leaves, spec = tree_flatten((args, kwargs))
    for leaf in leaves:
        _check_input(leaf)
    whole = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim > 0]
    if not whole:
        raise ValueError("encode: expected a tensor with rows among the inputs, got none")
    count = max(1, -(-max(len(leaf) for leaf in whole) // micro_batch))
    columns = [
        leaf.tensor_split(count) if isinstance(leaf, Tensor) and leaf.ndim > 0 else [leaf] * count
        for leaf in leaves
    ]
    parts = [list(inputs) for inputs in zip(*columns, strict=True)]
    return [
        MicroBatch(
            part,
            spec,
            {len(t) for t in part if isinstance(t, Tensor) and t.ndim > 0},
            _versions(part),
        )
        for part in parts
    ]


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


def join(outputs: list[Any], parts: list[MicroBatch]) -> tuple[list[Tensor | None], TreeSpec]:
    """Concatenate the rows of the micro-batches' outputs; a 0-d output is taken once."""
    flat, specs = zip(*(tree_flatten(output) for output in outputs), strict=True)
    kinds = [[getattr(leaf, "ndim", None) for leaf in leaves] for leaves in flat]
    if any(spec != specs[0] for spec in specs) or any(kind != kinds[0] for kind in kinds):
        raise ValueError("encode: the encoder returned another structure for another micro-batch")
    for leaves, part in zip(flat, parts, strict=True):
        for leaf in leaves:
            if leaf is None:
                continue
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"encode: the encoder must return tensors, got {type(leaf).__name__}"
                )
            if leaf.ndim > 0 and len(leaf) not in part.rows:
                raise ValueError(
                    "encode: the encoder must return a row for every row of an input, "
                    f"{' or '.join(map(str, sorted(part.rows)))} in this micro-batch, or a 0-d "
                    f"tensor, got shape {tuple(leaf.shape)}"
                )
    return [_concatenate(column) for column in zip(*flat, strict=True)], specs[0]


def _concatenate(column: tuple[Tensor | None, ...]) -> Tensor | None:
    first = column[0]
    if first is None or first.ndim == 0:
        return None if first is None else first.clone()
    return torch.cat(cast(tuple[Tensor, ...], column))
