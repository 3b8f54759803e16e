"""The memory budget: how many bytes one call of an operator may take for M x N similarities.

Forward may keep S and T for backward, which saves matrix products: a step then has four instead of
six with a teacher, and three instead of four without. The budget and the size of the batch alone
decide whether it keeps them, never the loss or its options. The workspaces fit into the budget too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from numbers import Integral
from typing import Literal

import torch

from mxm_kernels.compiling import constant_when_compiled

DeviceType = Literal["cpu", "cuda"]
_TYPES: tuple[DeviceType, ...] = ("cpu", "cuda")
_MOST = 2**63 - 1  # the operators take it as int64
CPU_DEFAULT = 64 << 20
CUDA_SHARE = 16  # of the memory of a GPU one part in so many, but
CUDA_MOST = 4 << 30  # at most so many bytes

# One value for each device type, None for the default. Plain globals: torch.compile reads them, and
# compiles again where one has changed; it stops at a lock and at a ContextVar.
_cpu: int | None = None
_cuda: int | None = None


def set_memory_budget(nbytes: int | None, device: DeviceType | None = None) -> None:
    """Set the memory budget of this process, for one type of device or for both.

    The default is 64 MiB on a CPU. On a GPU it is a sixteenth of its memory, at most 4 GiB.

    The budget bounds what one call of an operator takes for the M x N similarities of its batch:
    those that forward keeps for backward, the workspace, the scratch of the statistics and the
    temporaries of the matrix products. It does not bound what grows with M + N: features,
    gradients, a few numbers for each row and pair, and float32 sums of at most
    4 (N D + chunk D) bytes.

    Args:
        nbytes: bytes, at least 0. None takes the default again. 0 keeps nothing, and leaves the
            workspace at its default size.
        device: "cpu", "cuda" (ROCm too), or None for both. All GPUs have one budget.

    Raises:
        TypeError: ``nbytes`` is not an integer or None.
        ValueError: ``nbytes`` is negative or above 2**63 - 1, or ``device`` is none of these.

    Example:
        >>> from mxm_kernels import get_memory_budget, set_memory_budget
        >>> set_memory_budget(16 << 30, "cuda")
        >>> get_memory_budget("cuda")
        17179869184
        >>> set_memory_budget(None)
    """
    global _cpu, _cuda
    value = _checked(nbytes)
    for kind in _kinds(device):
        if kind == "cpu":
            _cpu = value
        else:
            _cuda = value


def get_memory_budget(device: DeviceType | torch.device) -> int:
    """The memory budget of a device, in bytes, as it is now.

    Args:
        device: "cpu", "cuda" (ROCm too), or a ``torch.device`` of one of these types. The default
            of a GPU depends on the memory of that GPU.

    Returns:
        Bytes. The default of "cuda" is 4 GiB where there is no GPU.

    Raises:
        ValueError: ``device`` is none of these.

    Example:
        >>> from mxm_kernels import get_memory_budget
        >>> get_memory_budget("cpu")
        67108864
    """
    kind = device.type if isinstance(device, torch.device) else device
    if not isinstance(kind, str) or kind not in _TYPES:  # an array compares by element
        raise ValueError(
            f"device must be 'cpu', 'cuda' or a torch.device of one of them, got {device!r}"
        )
    if kind == "cpu":
        return CPU_DEFAULT if _cpu is None else _cpu
    return _cuda_default(device) if _cuda is None else _cuda


@contextmanager
def memory_budget(nbytes: int | None, device: DeviceType | None = None) -> Iterator[None]:
    """Set the memory budget inside a ``with`` block; afterwards it is what it was before.

    The budget belongs to the process, so calls in other threads see it too. Backward takes the
    budget of its forward, even if it runs after the block.

    Args:
        nbytes: as in :func:`set_memory_budget`.
        device: as in :func:`set_memory_budget`; the other type's budget stays as it is.

    Returns:
        A context manager, or a decorator of functions.

    Raises:
        TypeError, ValueError: as :func:`set_memory_budget`, where the block is entered.

    Example:
        >>> from mxm_kernels import get_memory_budget, memory_budget
        >>> with memory_budget(1 << 30, "cpu"):
        ...     get_memory_budget("cpu")
        1073741824
    """
    before = {"cpu": _cpu, "cuda": _cuda}
    set_memory_budget(nbytes, device)
    try:
        yield
    finally:
        for kind in _kinds(device):
            set_memory_budget(before[kind], kind)


def budget_of(device: torch.device) -> int:
    """The budget of a call on ``device``; a device that is neither CPU nor GPU has the CPU's."""
    return get_memory_budget(device if device.type == "cuda" else "cpu")


def default_of_card(memory: int) -> int:
    """The default budget of a GPU with ``memory`` bytes."""
    return min(memory // CUDA_SHARE, CUDA_MOST)


def default_budget(device: torch.device) -> int:
    """The budget where none was set."""
    return _cuda_default(device) if device.type == "cuda" else CPU_DEFAULT


@constant_when_compiled
def _cuda_default(device: str | torch.device) -> int:
    index = device.index if isinstance(device, torch.device) else None
    if index is None:
        index = torch.cuda.current_device() if torch.cuda.is_available() else 0
    return _default_of_index(index)


@cache  # asked at every call of an operator
def _default_of_index(index: int) -> int:
    if not torch.cuda.is_available():
        return CUDA_MOST
    return default_of_card(torch.cuda.get_device_properties(index).total_memory)


def _checked(nbytes: object) -> int | None:
    if nbytes is None:
        return None
    if isinstance(nbytes, bool) or not isinstance(nbytes, Integral):
        raise TypeError(
            f"nbytes must be an integer number of bytes or None, got {type(nbytes).__name__}"
        )
    value = int(nbytes)
    if not 0 <= value <= _MOST:
        raise ValueError(f"nbytes must be from 0 to 2**63 - 1, got {value}")
    return value


def _kinds(device: object) -> tuple[DeviceType, ...]:
    if device is None:
        return _TYPES
    for kind in _TYPES:
        if isinstance(device, str) and device == kind:
            return (kind,)
    raise ValueError(
        f"device must be 'cpu', 'cuda' or None, a type and not one of its devices, got {device!r}"
    )
