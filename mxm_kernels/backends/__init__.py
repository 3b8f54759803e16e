"""The implementations of the operator, found by name and loaded on first use.

``choose`` applies the rule of the public functions: the backend that was asked for, or an
error that says why it cannot run; without a request, Triton on a GPU and native on a CPU where
they can run (they take no float64), and blocked for the rest.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

import torch

from mxm_kernels.backends.problem import Backend

NAMES = ("triton", "native", "blocked")


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot run here."""


@cache
def load(name: str) -> Backend:
    """The backend of that name. Importing Triton is put off until it is used."""
    return import_module(f"mxm_kernels.backends.{name}").backend


def check_name(name: object) -> None:
    """The name of a backend, or None.

    Raises:
        ValueError: no backend has that name.
    """
    if name is not None and (not isinstance(name, str) or name not in NAMES):
        raise ValueError(f"backend must be one of {', '.join(NAMES)} or None, got {name!r}")


@torch.compiler.assume_constant_result
def choose(name: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The name of the backend that runs ``dtype`` features on ``device``.

    Raises:
        ValueError: no backend has that name.
        BackendUnavailableError: the named backend cannot run; the message says why.
    """
    if name is None:
        preferred = {"cuda": "triton", "cpu": "native"}.get(device.type, "blocked")
        can_run = load(preferred).unavailable(device, dtype) is None
        return preferred if can_run else "blocked"
    check_name(name)
    reason = load(name).unavailable(device, dtype)
    if reason is not None:
        raise BackendUnavailableError(f"backend {name!r} cannot run: {reason}")
    return name
