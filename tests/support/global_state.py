"""What a process has one of: generators, defaults, modes, filters. A call leaves it alone."""

from __future__ import annotations

import gc
import locale
import logging
import multiprocessing
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

GENERATOR = "torch's generator of the CPU"


def global_state() -> dict[str, Any]:
    """Name and value of each; values compare by ``==``."""
    return {**_random(), **_torch(), **_python()}


def changed(before: dict[str, Any]) -> list[str]:
    """The names of what is no longer as it was."""
    now = global_state()
    return [name for name, value in before.items() if now[name] != value]


@contextmanager
def unchanged(*but: str) -> Iterator[None]:
    """A block that changes exactly what is named."""
    before = global_state()
    yield
    names = changed(before)
    assert names == [*but], names


def _random() -> dict[str, Any]:
    name, numbers, *rest = np.random.get_state()
    made = {
        GENERATOR: _bytes(torch.get_rng_state()),
        "numpy's generator": (name, numbers.tobytes(), *rest),
        "Python's generator": random.getstate(),
    }
    if torch.cuda.is_available():
        made["the GPUs' generators"] = [_bytes(s) for s in torch.cuda.get_rng_state_all()]
        made["current GPU"] = torch.cuda.current_device()
        made["current stream"] = torch.cuda.current_stream()
    return made


def _bytes(state: torch.Tensor) -> bytes:
    return state.cpu().numpy().tobytes()


def _torch() -> dict[str, Any]:
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
        ],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "float32 products": torch.get_float32_matmul_precision(),
        "cuDNN": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "anomaly mode": torch.is_anomaly_enabled(),
        "modes": (torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()),
        "denormal numbers": torch.full((), 1e-40, dtype=torch.float32, device="cpu").item() > 0,
        "how tensors print": dict(vars(torch._tensor_str.PRINT_OPTS)),
    }


def _python() -> dict[str, Any]:
    return {
        "warning filters": (list(warnings.filters), warnings.showwarning),
        "numpy's errors": np.geterr(),
        "how arrays print": np.get_printoptions(),
        "environment": dict(os.environ),
        "working directory": os.getcwd(),
        "import path": list(sys.path),
        "signal handlers": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "locale": locale.setlocale(locale.LC_ALL),
        "recursion limit": sys.getrecursionlimit(),
        "hooks": (sys.excepthook, sys.gettrace(), sys.stdout, sys.stderr),
        "garbage collection": (gc.isenabled(), gc.get_threshold()),
    }
