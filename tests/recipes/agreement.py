"""``same`` for recipes whose arguments have names, beside constants of the features' dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.recipes import same
from tests.support.backend import LOW, BackendUnderTest

SEEDS = (0, 1, 2)
Loss = Callable[..., Tensor]


def unit(rows: int, dimension: int = 6) -> Tensor:
    """(rows, dimension) random directions in float64."""
    return same.unit(rows, dimension).double()


def assert_agrees(
    recipe: Loss,
    dense: Loss,
    inputs: dict[str, Tensor],
    backend: BackendUnderTest,
    constants: dict[str, Any] | None = None,
) -> None:
    """Hold a recipe to a dense form in float64, in every wide dtype of the backend.

    ``inputs`` are given by name to both and get gradients. ``constants`` are given to both; where
    they are tensors of floats, in the dtype of the features.
    """
    given, names = constants or {}, tuple(inputs)
    functions = (
        _by_place(recipe, names, given, backend=backend.name),
        _by_place(dense, names, given),
    )
    same.assert_same(backend, *functions, *inputs.values())


def assert_agrees_in_16_bits(
    recipe: Loss,
    dense: Loss,
    features: dict[str, Tensor],
    backend: BackendUnderTest,
    constants: dict[str, Any],
) -> None:
    """The same of features in 16 bits, to two of their roundings; the constants in float32."""
    names = tuple(features)
    ours = _by_place(recipe, names, constants, dtype=torch.float32, backend=backend.name)
    for dtype in LOW:
        leaves = [rows.to(backend.device, dtype) for rows in features.values()]
        exact = [leaf.cpu().double() for leaf in leaves]
        expected = same.differentiated(_by_place(dense, names, constants), exact)
        same.assert_close(same.differentiated(ours, leaves), expected, 2 * torch.finfo(dtype).eps)


def _by_place(
    loss: Loss,
    names: tuple[str, ...],
    constants: dict[str, Any],
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Loss:
    """The loss as a function of its inputs; the constants in ``dtype`` or that of the inputs."""

    def of_leaves(*leaves: Tensor) -> Tensor:
        moved = _moved(constants, dtype or leaves[0].dtype, leaves[0].device)
        return loss(**dict(zip(names, leaves, strict=True)), **moved, **options)

    return of_leaves


def _moved(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The same with its tensors on a device, and those of floats in a dtype."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, dict):
        return {name: _moved(part, dtype, device) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(part, dtype, device) for part in value)
    return value
