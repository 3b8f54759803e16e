"""Description of the machine that a study ran on."""

import platform
from typing import Any

import psutil
import torch
from cpuinfo import get_cpu_info


def machine() -> dict[str, Any]:
    """Processor, cores, threads, system and GPU, for a JSON file."""
    return {
        "processor": get_cpu_info().get("brand_raw") or platform.machine(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
