"""A process that compiles candidates and checks each on a small batch: one JSON line in, one out.

    {"cell": {...}, "device": "cuda:0", "launch": {...}}  ->  {"fault": null}

Running a candidate once compiles it into Triton's cache on disk, where the process that times it
finds it. A candidate that crashes takes this process along and no other.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import cache
from typing import Any

import torch

from mxm_kernels.backends import load
from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.settings import Cell, Launch
from mxm_kernels.tuning import check
from mxm_kernels.tuning.workload import Workload, small


def job(cell: Cell, device: torch.device, candidate: Launch) -> str:
    """The line that asks for a candidate."""
    named = {**asdict(cell), "dtype": str(cell.dtype).removeprefix("torch.")}
    return json.dumps({"cell": named, "device": str(device), "launch": asdict(candidate)})


@cache
def _batch(cell: Cell, device: torch.device) -> tuple[Workload, Any]:
    workload = small(cell, device)
    return workload, check.expected(workload)


def answer(line: str) -> dict[str, Any]:
    """Compile, run, check: the line's answer."""
    asked = json.loads(line)
    named = asked["cell"]
    cell = Cell(**{**named, "dtype": getattr(torch, named["dtype"])})
    try:
        workload, wanted = _batch(cell, torch.device(asked["device"]))
        with launch.forced(cell.phase, Launch(**asked["launch"])):
            got = workload.run(load("triton"), check.EVERYTHING)
        fault = check.wrong(workload, got, wanted)
    except Exception as error:  # out of shared memory, a compiler's own failure
        fault = f"{type(error).__name__}: {str(error)[:200]}"
    return {"fault": fault}


def main() -> None:
    """Answer line after line."""
    torch.set_num_threads(1)  # there are many of these processes
    for line in sys.stdin:
        print(json.dumps(answer(line)), flush=True)


if __name__ == "__main__":
    main()
