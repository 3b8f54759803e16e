"""The implementations of the operators, found by name and loaded on first use.

``choose`` applies the rule of the public functions: the backend that was asked for, or an
error that says why it cannot run; without a request, the one that the registry names for the
device where it can run (none but blocked takes float64), and blocked for the rest.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

import torch

from mxm_kernels.backends.base import Backend
from mxm_kernels.compiling import constant_when_compiled

# Name of each backend, a module of this package, and the type of device that it is the default of.
REGISTRY: dict[str, str | None] = {"triton": "cuda", "native": "cpu", "blocked": None}


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot run here."""


@cache
def load(name: str) -> Backend:
    """The backend of that name. Importing Triton is put off until it is used."""
    return import_module(f"mxm_kernels.backends.{name}").backend


@constant_when_compiled
def fuses(name: str, formula: str) -> bool:
    """Whether the backend has a formula of ``core.formulas`` in a kernel."""
    return formula in load(name).fused_formulas


def check_name(name: object) -> None:
    """The name of a backend, or None.

    Raises:
        ValueError: no backend has that name.
    """
    if name is not None and (not isinstance(name, str) or name not in REGISTRY):
        raise ValueError(f"backend must be one of {', '.join(REGISTRY)} or None, got {name!r}")


@constant_when_compiled
def choose(name: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the backend that runs ``dtype`` features on ``device``.

    Raises:
        ValueError: no backend has that name.
        BackendUnavailableError: the named backend cannot run; the message says why.
    """
    if name is None:
        for candidate, kind in REGISTRY.items():
            if kind == device.type and load(candidate).unavailable(device, dtype) is None:
                return candidate
        return "blocked"
    check_name(name)
    reason = load(name).unavailable(device, dtype)
    if reason is not None:
        raise BackendUnavailableError(f"backend {name!r} cannot run: {reason}")
    return name
