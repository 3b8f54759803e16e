"""Peak memory of one step, beyond its inputs and gradients."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from bench.timing import Entry
from tests.support.memory import peak_bytes

_PROCESS = Path("/proc/self")


def peaks(entry: Entry) -> dict[str, int]:
    """What torch's allocator gave out at most; on a CPU also what the process occupied.

    The second sees memory that C++ took for itself, and misses what the process already held
    free: it is a check of the first on large batches, not a measurement of small ones.
    Replaying a CUDA graph allocates nothing, so its memory does not show and is left out.
    """
    if not entry.phases:
        return {}

    def step() -> None:
        entry.step(lambda: None)

    entry.ready()
    most = peak_bytes(step, entry.batch.x.device)
    gradients = sum(
        leaf.grad.nbytes for leaf in entry.batch.leaves.values() if leaf.grad is not None
    )
    found = {"peak_bytes": max(0, most - gradients)}
    entry.ready()
    if not entry.batch.x.is_cuda and (_PROCESS / "clear_refs").exists():
        found["peak_resident_bytes"] = max(0, _resident_growth(step) - gradients)
    return found


def _resident_growth(run: Callable[[], None]) -> int:
    """How far the process' resident memory rose during ``run``."""
    (_PROCESS / "clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (_PROCESS / "status").read_text())
    return int(found[1]) << 10 if found else 0
