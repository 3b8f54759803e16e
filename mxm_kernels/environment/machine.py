"""The machine at hand: its devices, its processor, its cores."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch


def devices() -> list[torch.device]:
    """The CPU, and every accelerator that torch sees."""
    found = [torch.device("cpu")]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        count = torch.accelerator.device_count()
        found += [torch.device(accelerator.type, index) for index in range(count)]
    return found


def cpu_model() -> str:
    """The processor's own name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
