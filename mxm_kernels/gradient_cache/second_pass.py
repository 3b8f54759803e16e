"""One encoding: what the first pass leaves, and the second pass with its gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mxm_kernels.gradient_cache.context import Autocast, RandomState, no_sync
from mxm_kernels.gradient_cache.encoders import name_of
from mxm_kernels.gradient_cache.micro_batches import Joined, MicroBatch

ROUNDING = 16  # eps of the output's dtype, by which two passes may differ


@dataclass
class Encoding:
    """One encoding that waits for the gradient of its features."""

    encoder: Callable[..., Any]
    parts: list[MicroBatch]
    states: list[RandomState]
    autocast: Autocast
    joined: Joined  # features: leaves, all rows
    modules: tuple[nn.Module, ...]
    groups: list[Any]  # process groups whose ranks make the second pass together

    def has_gradient(self) -> bool:
        """Whether a loss of the features was differentiated."""
        return any(feature.grad is not None for feature in self._features())

    def backward(self, silent: set[nn.Module]) -> list[Tensor]:
        """Second pass; modules synchronise at its last micro-batch, those in ``silent`` do not.

        Returns how far each of its outputs is from the first pass's, in units of what rounding
        explains: 0-d tensors, which nobody has waited for.
        """
        for part in self.parts:
            part.check_unchanged()
        limits = [None if f is None else _rounding(f) for f in self.joined.features]
        distances = []
        for part, state in zip(self.parts, self.states, strict=True):
            is_last = part is self.parts[-1]
            with ExitStack() as stack:
                for module in self.modules:
                    if not is_last or module in silent:
                        stack.enter_context(no_sync(module))
                with torch.enable_grad(), state.restored(), self.autocast.restored():
                    outputs = self._leaves(part.run(self.encoder))
                used, grads = [], []
                for k, output in enumerate(outputs):
                    feature, limit = self.joined.features[k], limits[k]
                    if feature is None or limit is None:
                        continue
                    total = self.joined.totals[k]
                    place = None if total is None else part.rows[total]
                    distances.append(_distance(output.detach(), feature.detach(), place, limit))
                    grad = self._gradient(output, feature, place, is_last)
                    if grad is not None and output.requires_grad:
                        used.append(output)
                        grads.append(grad)
                if used:
                    torch.autograd.backward(used, grads)
        for feature in self._features():
            feature.grad = None
        return distances

    def _features(self) -> list[Tensor]:
        return [feature for feature in self.joined.features if feature is not None]

    def _leaves(self, output: Any) -> list[Any]:
        leaves = tree_leaves(output)
        first = [getattr(f, "ndim", None) for f in self.joined.features]
        if [getattr(leaf, "ndim", None) for leaf in leaves] != first:
            raise RuntimeError(
                f"{name_of(self.encoder)} returned another structure in the second pass than in "
                "the first"
            )
        return leaves

    def _gradient(
        self, output: Tensor, feature: Tensor, place: slice | None, is_last: bool
    ) -> Tensor | None:
        """The part of the feature's gradient that belongs to ``output``: 0 for repeated rows.

        Ranks that go together all go back through the encoder, with or without a gradient.
        """
        if place is None:
            return feature.grad if is_last else None
        if feature.grad is None:
            return torch.zeros_like(output) if self.groups else None
        if place.start == place.stop:
            return torch.zeros_like(output)
        return feature.grad[place]


def _rounding(feature: Tensor) -> Tensor:
    """By how much an output may differ, 0-d; a whole number by nothing."""
    feature = feature.detach()
    if not feature.is_floating_point() or not feature.numel():
        return feature.new_zeros((), dtype=torch.float32)
    dtype = torch.promote_types(feature.dtype, torch.float32)
    largest = feature.to(dtype).nan_to_num(0.0, 0.0, 0.0).abs().max()
    return ROUNDING * torch.finfo(feature.dtype).eps * largest


def _distance(output: Tensor, feature: Tensor, place: slice | None, limit: Tensor) -> Tensor:
    """The largest difference in units of ``limit``; NaN and NaN are the same."""
    first = feature if place is None else feature[place]
    again = output if place is None or place.start < place.stop else output[:0]
    if not first.numel():
        return torch.zeros_like(limit)
    same = (first == again) | ((first != first) & (again != again))
    apart = (first.to(limit.dtype) - again.to(limit.dtype)).abs() / limit
    return torch.where(same, 0, apart.nan_to_num(torch.inf, posinf=torch.inf)).max()


def warn_of_changed(distances: dict[str, list[Tensor]]) -> None:
    """Say which encoders gave other outputs in the second pass; waits for every device."""
    found = []
    for name, of_encoder in distances.items():
        by_device: dict[torch.device, list[Tensor]] = {}
        for distance in of_encoder:
            by_device.setdefault(distance.device, []).append(distance.float())
        worst = max((float(torch.stack(ones).max()) for ones in by_device.values()), default=0.0)
        if worst > 1:
            found.append(f"{name} ({worst:.3g} times what rounding explains)")
    if found:
        warnings.warn(
            f"GradientCache: the second pass gave other outputs than the first: {', '.join(found)}"
            "; the gradients are not those of the loss. Put layers that change in every forward "
            "pass (spectral_norm, running statistics, counters) into eval mode. Draw random "
            "numbers that do not come from torch's default generators before encode. Return a "
            "0-d output that is the same for every micro-batch",
            stacklevel=3,
        )
