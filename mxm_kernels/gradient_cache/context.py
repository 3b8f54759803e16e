"""What surrounds the second pass: the random state, autocast, and no synchronising."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def no_sync(module: nn.Module) -> Iterator[None]:
    """Keep the gradients of ``module`` on this process: DDP and FSDP, version 1 and 2."""
    context: Any = getattr(module, "no_sync", None)
    switch: Any = getattr(module, "set_requires_gradient_sync", None)
    with ExitStack() as stack:
        if callable(context):
            stack.enter_context(context())
        elif callable(switch):
            switch(False)
            stack.callback(switch, True)
        else:  # the wrapper may be inside
            for inner in module.children():
                stack.enter_context(no_sync(inner))
        yield


def accelerators() -> list[torch.device]:
    """Every device of the accelerator, if that has been used: else it has drawn nothing."""
    kind = torch.accelerator.current_accelerator()
    if kind is None:
        return []
    module = torch.get_device_module(kind)
    started = getattr(module, "is_initialized", torch.accelerator.is_available)  # mps has none
    if not started():
        return []
    return [torch.device(kind.type, k) for k in range(torch.accelerator.device_count())]


@dataclass
class RandomState:
    """The default generators of the CPU and of every device: an encoder may draw from any."""

    cpu: Tensor
    devices: dict[torch.device, Tensor]

    @classmethod
    def current(cls) -> RandomState:
        """As it is now."""
        states = {
            device: torch.get_device_module(device).get_rng_state(*_which(device))
            for device in accelerators()
        }
        return cls(torch.get_rng_state(), states)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Run from this state, and leave the present one as it was."""
        now = RandomState.current()
        self._set()
        try:
            yield
        finally:
            now._set()

    def _set(self) -> None:
        torch.set_rng_state(self.cpu)
        for device, state in self.devices.items():
            torch.get_device_module(device).set_rng_state(state, *_which(device))


def _which(device: torch.device) -> tuple[torch.device, ...]:
    """The argument that names a device; the one of mps has no name."""
    return () if device.type == "mps" else (device,)


@dataclass
class Autocast:
    """Whether and to what dtype autocast casts, on the CPU and on the accelerator."""

    states: list[tuple[str, bool, torch.dtype]]
    cache: bool

    @classmethod
    def current(cls) -> Autocast:
        """As it is now."""
        accelerator = torch.accelerator.current_accelerator()
        kinds = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
        known = [kind for kind in kinds if torch.amp.is_autocast_available(kind)]
        return cls(
            [(k, torch.is_autocast_enabled(k), torch.get_autocast_dtype(k)) for k in known],
            torch.is_autocast_cache_enabled(),
        )

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Run in this state."""
        with ExitStack() as stack:
            for kind, enabled, dtype in self.states:
                if enabled or torch.is_autocast_enabled(kind):
                    cast = torch.autocast(kind, dtype, enabled, cache_enabled=self.cache)
                    stack.enter_context(cast)
            yield
