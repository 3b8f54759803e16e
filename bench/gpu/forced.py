"""Every phase on a small ragged batch in several spans and chunks: what the memory checker watches.

    python -m bench.gpu.forced DEVICE

A wrong result ends it with status 1.
"""

from __future__ import annotations

import sys
from unittest.mock import patch

import torch

from mxm_kernels.backends import load
from mxm_kernels.backends.triton import plan
from mxm_kernels.backends.triton.settings import Cell, Phase
from mxm_kernels.tuning import check
from mxm_kernels.tuning.workload import small

PHASES: tuple[tuple[Phase, bool], ...] = (
    ("statistics", True),
    ("gradient", True),
    ("stored_gradient", True),
    ("statistics", False),
    ("gradient", False),
    ("stored_gradient", False),
    ("sigmoid_statistics", False),
    ("sigmoid_gradient", False),
)
D, ROWS = 80, 600


def main() -> None:
    """Run them; a result that is wrong ends the program with its words."""
    device = torch.device(sys.argv[1])
    for phase, teacher in PHASES:
        workload = small(Cell(phase, torch.bfloat16, teacher, D, ROWS), device)
        with patch.object(plan, "MOST_SCRATCH", 1), patch.object(plan, "MOST_WORKSPACE", 1):
            got = workload.run(load("triton"), check.EVERYTHING)
        fault = check.wrong(workload, got, check.expected(workload))
        if fault is not None:
            sys.exit(f"{phase}: {fault}")
        print(f"{phase}, {'teacher' if teacher else 'no teacher'}: right", flush=True)


if __name__ == "__main__":
    main()
