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
    steps = {name: _start(name, run) for name in list(step.CASES)[: 2 if run.smoke else None]}
    found = compiled(cells.cells(run.smoke), run.device, 0.8 * run.left, print)
    run.keep({"compile": {cells.name(cell): cells.record(of) for cell, of in found.items()}})
    failed = []
    for cell, of in found.items():
        for one, fault in of.faults:
            print(f"{cells.name(cell)}: {one}: {fault}")
        shipped = [fault for one, fault in of.faults if one == of.shipped]
        failed += [f"the table's launch of {cells.name(cell)}: {fault}" for fault in shipped]
    failed += [
        f"a step of {name} failed, see all.log" for name in steps if _failed(steps[name], run)
    ]
    if failed:
        raise WrongError("; ".join(failed))


def _start(name: str, run: Run) -> subprocess.Popen[bytes]:
    smoke = ["--smoke"] if run.smoke else []
    return subprocess.Popen([sys.executable, "-m", step.__name__, name, str(run.device), *smoke])


def _failed(process: subprocess.Popen[bytes], run: Run) -> bool:
    """Whether it ended with a fault; one that is not done by now is left to its end."""
    try:
        return process.wait(timeout=max(0.1, run.left)) != 0
    except subprocess.TimeoutExpired:
        print(f"not done in time: {process.args!r}")
        return False
