"""What a record says about where it was measured."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from cpuinfo import get_cpu_info

from mxm_kernels.environment.report import cores

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("torch", "triton", "numpy", "pytest-benchmark"),
    *("open_clip_torch", "memeff", "inf-cl", "cut-cross-entropy", "liger-kernel"),
)


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on ``device``."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserved
    return psutil.virtual_memory().available


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


@cache
def cpu_model() -> str:
    """The processor's own name."""
    return get_cpu_info().get("brand_raw") or platform.processor() or platform.machine()


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(get_cpu_info().get("flags", ()))


def commit() -> str | None:
    """The commit, with "+" for changes not committed to what is measured; None without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "mxm_kernels", "bench/*.py", "CMakeLists.txt")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def source_digest() -> str:
    """A digest of the package's source: it tells what was measured where git cannot."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "mxm_kernels").rglob("*")):
        if path.suffix in {".py", ".cpp", ".cc", ".h", ".hpp"}:
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def describe(device: torch.device) -> dict:
    """Machine, versions, commit and date, for every record."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "gpu": gpu,
        "memory_bytes": _memory_bytes(device),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cuda": torch.version.cuda if gpu else None,
        "versions": versions,
        "commit": commit(),
        "source": source_digest(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def slug(machine: dict) -> str:
    """The machine's file name: its GPU, or its CPU, what that computes with, and its cores.

    A virtual machine says "AMD EPYC" of processors with and without AVX-512.
    """
    cpu = f"{machine['cpu']} {machine['cpu_capability']} {machine['cores']} cores"
    name = machine["gpu"] or cpu
    name = re.sub(r"\((r|tm)\)", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def main() -> None:
    """Print the description as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    print(json.dumps(describe(torch.device(parser.parse_args().device)), indent=1))


if __name__ == "__main__":
    main()
