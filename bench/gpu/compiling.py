"""Phase 1: every candidate compiled in parallel processes, and checked on a small batch.

A training step of each headline loss is run beside them, which compiles the kernels that have no
candidates. What is compiled lies in Triton's cache of this run.
"""

from __future__ import annotations

import subprocess
import sys

from bench.gpu import cells, step
from bench.gpu.phases import Run, WrongError
from mxm_kernels.tuning.tune import compiled


def phase(run: Run) -> None:
    """Compile until the bound; the launches that are right, and every fault with its reason."""
    devices = [str(run.device), *(["--smoke"] if run.smoke else [])]
    steps = {
        name: subprocess.Popen([sys.executable, "-m", "bench.gpu.step", name, *devices])
        for name in step.CASES
    }
    found = compiled(cells.cells(run.smoke), run.device, 0.9 * run.left, print)
    failed = []
    for name, process in steps.items():
        if process.wait() != 0:
            failed.append(f"a step of {name} failed, see all.log")
    run.keep({"compile": {cells.name(cell): cells.record(of) for cell, of in found.items()}})
    for cell, of in found.items():
        for one, fault in of.faults:
            print(f"{cells.name(cell)}: {one}: {fault}")
        shipped = [fault for one, fault in of.faults if one == of.shipped]
        failed += [f"the table's launch of {cells.name(cell)}: {fault}" for fault in shipped]
    if failed:
        raise WrongError("; ".join(failed))
