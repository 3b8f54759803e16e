"""How kernels are launched on a device: which settings, how many programs, which arithmetic.

Settings come from the table (``settings``), or from what ``python -m mxm_kernels tune`` measured on
this GPU (``tuned``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver

from mxm_kernels.backends.interface import Problem
from mxm_kernels.backends.triton import tuned
from mxm_kernels.backends.triton.settings import KINDS, SETTINGS, Cell, Launch, Phase, Target


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU instead of compiling them."""
    return knobs.runtime.interpret


if interpreted():
    from mxm_kernels.backends.triton import interpreter

    interpreter.mend()


@cache
def target(device: torch.device) -> Target:
    """The row of the table for ``device``."""
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip is not None:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    # Consumer Blackwell (12.x) has the shared memory and the instructions of sm_80's row.
    by_major: dict[int, Target] = {9: "sm_90", 10: "sm_100", 11: "sm_100"}
    return by_major.get(major, "sm_80")


def pick_placed(
    phase: Phase, problem: Problem, diagnostics: bool = False, neg_sum: bool = False
) -> Launch:
    """``pick``, or the table's launch of pointers where a factor has to come by one.

    It looks at addresses, so it is for what launches: other tensors have none while torch.compile
    traces.
    """
    picked = pick(phase, problem, diagnostics, neg_sum)
    setting = SETTINGS[target(problem.x.device)][KINDS[phase]]
    by_pointers = setting.pointers
    if problem.told:
        by_pointers = setting.told_pointers if problem.has_teacher else None
    if by_pointers is None or phase in _forced_launches:
        return picked
    if all(aligned(x) and aligned(y) for x, y in problem.feature_pairs):
        return picked
    return by_pointers


def aligned(matrix: Tensor) -> bool:
    """Whether a matrix and each of its rows begin at multiples of 16 bytes, as descriptors need."""
    return matrix.data_ptr() % 16 == 0 and matrix.stride(0) * matrix.itemsize % 16 == 0


_forced_launches: dict[Phase, Launch] = {}


@contextmanager
def forced(phase: Phase, setting: Launch) -> Iterator[None]:
    """Take ``setting`` for ``phase``, whatever the batch: for what measures and what tests."""
    before = _forced_launches.get(phase)
    _forced_launches[phase] = setting
    try:
        yield
    finally:
        del _forced_launches[phase]
        if before is not None:
            _forced_launches[phase] = before


@cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may have, as Triton checks it; no bound in the interpreter."""
    if device.type == "cpu":
        return 1 << 30
    index = torch.cuda.current_device() if device.index is None else device.index
    return driver.active.utils.get_device_properties(index)["max_shared_mem"]


def pick(
    phase: Phase, problem: Problem, diagnostics: bool = False, neg_sum: bool = False
) -> Launch:
    """The launch of ``phase``: the one forced, else the one measured on this GPU, else the table's.

    A process reads what was measured once, so that forward and backward, and every step, agree.
    Nothing is measured under rules.
    """
    if phase in _forced_launches:
        return _forced_launches[phase]
    cell, device = Cell.of(phase, problem, diagnostics), problem.x.device
    measured = {} if cell.told else in_force(device)  # mostly empty: then no key need be made
    found = measured.get(tuned.key(cell)) if measured else None
    return cell.shipped(target(device), neg_sum=neg_sum) if found is None else found


@cache
def in_force(device: torch.device) -> dict[tuned.Key, Launch]:
    """What was measured on this GPU with this version of the kernels, from the file, read once."""
    loaded = tuned.load(*identity(device))
    for reason in loaded.ignored:
        warnings.warn(f"{reason}; {tuned.FORGET}", stacklevel=2)
    return loaded.launches


def identity(device: torch.device) -> tuple[str, Target, int]:
    """What decides which measured settings hold: its name, its row of the table, its memory."""
    return device_name(device), target(device), shared_bytes(device)


def device_name(device: torch.device) -> str:
    """The GPU's own name; the interpreter counts as one."""
    return "interpreter" if device.type == "cpu" else torch.cuda.get_device_name(device)


def widening(features: Tensor) -> dict[str, bool]:
    """Whether the factors of a tile's products are widened first, as a constexpr argument.

    The interpreter returns garbage for bfloat16 products (Triton 3.7.1 and 3.9.0), so there, and
    only there, they are.
    """
    return {"WIDEN": features.device.type == "cpu" and features.dtype == torch.bfloat16}


def workspace_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Dtype of dS in memory: that of the features.

    The interpreter cuts bfloat16 off instead of rounding it, which doubles its error; it gets
    float32.
    """
    if device.type == "cpu" and dtype == torch.bfloat16:
        return torch.float32
    return dtype
