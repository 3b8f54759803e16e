"""Peak memory of one step, beyond its inputs and gradients."""

from __future__ import annotations

import re
from pathlib import Path

from bench.timing import Entry
from tests.support.memory import peak_bytes

_PROCESS = Path("/proc/self")  # psutil has no high-water mark on Linux


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
    resident = not entry.batch.x.is_cuda and (_PROCESS / "clear_refs").exists()
    before = 0
    if resident:
        forget_peak()
        before = status_bytes("VmRSS")
    most = {"peak_bytes": peak_bytes(step, entry.batch.x.device)}
    if resident:
        most["peak_resident_bytes"] = status_bytes("VmHWM") - before
    leaves = entry.batch.leaves.values()
    gradients = sum(leaf.grad.nbytes for leaf in leaves if leaf.grad is not None)
    return {name: max(0, size - gradients) for name, size in most.items()}


def forget_peak() -> None:
    """Set this process's high-water mark, VmHWM, to what it occupies now."""
    (_PROCESS / "clear_refs").write_text("5")


def status_bytes(name: str) -> int:
    """A size of this process that the kernel keeps, such as VmRSS or VmHWM; 0 where it does not."""
    found = re.search(rf"{name}:\s+(\d+) kB", (_PROCESS / "status").read_text())
    return int(found[1]) << 10 if found else 0
