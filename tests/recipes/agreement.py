"""A recipe of docs/recipes beside its dense form: value and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.support.backend import LOW, BackendUnderTest
from tests.support.compare import FLOAT32_BOUND, FLOAT64_BOUND, error

SEEDS = (0, 1, 2)


def unit(rows: int, dimension: int = 6) -> Tensor:
    """(rows, dimension) random directions in float64."""
    return normalize(torch.randn(rows, dimension, dtype=torch.float64), dim=1)


def assert_agrees(
    recipe: Callable[..., Tensor],
    dense: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    backend: BackendUnderTest,
    constants: dict[str, Any] | None = None,
) -> None:
    """Hold a recipe to a dense form in float64, in every wide dtype of the backend.

    ``inputs`` are given by name to both and get gradients. ``constants`` are given to both; where
    they are tensors of floats, in the dtype of the features.
    """
    given = constants or {}
    expected = _differentiated(dense, inputs, given, (torch.float64, torch.float64), "cpu")
    for dtype, bound in _bounds(backend):
        made = _differentiated(_on(recipe, backend), inputs, given, (dtype, dtype), backend.device)
        _compare(made, expected, bound, dtype)


def assert_agrees_in_16_bits(
    recipe: Callable[..., Tensor],
    dense: Callable[..., Tensor],
    features: dict[str, Tensor],
    backend: BackendUnderTest,
    constants: dict[str, Any],
) -> None:
    """The same of features in 16 bits, to two of their roundings; the constants in float32."""
    for dtype in LOW:
        rounded = {name: rows.to(dtype) for name, rows in features.items()}
        expected = _differentiated(dense, rounded, constants, (torch.float64, torch.float64), "cpu")
        dtypes = dtype, torch.float32
        made = _differentiated(_on(recipe, backend), rounded, constants, dtypes, backend.device)
        _compare(made, expected, 2 * torch.finfo(dtype).eps, dtype)


def _on(recipe: Callable[..., Tensor], backend: BackendUnderTest) -> Callable[..., Tensor]:
    return lambda **given: recipe(**given, backend=backend.name)


def _compare(
    made: dict[str, Tensor], expected: dict[str, Tensor], bound: float, dtype: torch.dtype
) -> None:
    for name in expected:
        # A value near 0 is a difference of terms that are not.
        size = max(float(expected[name].norm()), 1.0)
        off = error(made[name], expected[name]) / size
        assert off <= bound, f"{name} in {dtype}: {off:.1e} of {size:.1e}"


def _bounds(backend: BackendUnderTest) -> Iterator[tuple[torch.dtype, float]]:
    for dtype in backend.dtypes:
        if dtype.itemsize > 2:
            yield dtype, FLOAT64_BOUND if dtype == torch.float64 else 4 * FLOAT32_BOUND


def _differentiated(
    function: Callable[..., Tensor],
    inputs: dict[str, Tensor],
    constants: dict[str, Any],
    dtypes: tuple[torch.dtype, torch.dtype],
    device: torch.device | str,
) -> dict[str, Tensor]:
    """The loss and the gradient of every input, by name; ``dtypes`` of inputs and constants."""
    leaves = {n: t.to(device, dtypes[0]).detach().requires_grad_() for n, t in inputs.items()}
    loss = function(**leaves, **_moved(constants, dtypes[1], device))
    assert loss.shape == ()
    gradients = torch.autograd.grad(
        loss, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return {"loss": loss.detach(), **dict(zip(leaves, gradients, strict=True))}


def _moved(value: Any, dtype: torch.dtype, device: torch.device | str) -> Any:
    """The same with its tensors on a device, and those of floats in a dtype."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, dict):
        return {name: _moved(part, dtype, device) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(part, dtype, device) for part in value)
    return value
