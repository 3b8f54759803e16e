"""Count the PyTorch calls and allocations of one training step: what a small batch costs.

    python -m bench.calls

At the paper's batch, 420 images and 350 texts, a step is a millisecond or two of arithmetic, and
every call that PyTorch dispatches adds microseconds, on a GPU a launch.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from bench.markdown import table
from mxm_kernels import backends, fused_mfh_loss

ALLOCATIONS = ("aten::empty", "aten::empty_strided")


def step(backend: str, rows: tuple[int, int] = (420, 350), dimension: int = 512):
    """One step of MFH with 10 rounds and a teacher, as a function."""
    x, y, tx, ty = (normalize(torch.randn(n, dimension)) for n in rows * 2)
    scale = torch.tensor(30.0, requires_grad=True)
    x.requires_grad_()
    y.requires_grad_()

    def run() -> None:
        loss = fused_mfh_loss(
            x,
            y,
            (6, 5),
            logit_scale=scale,
            teacher_image_features=tx,
            teacher_text_features=ty,
            backend=backend,
        )
        loss.backward()

    return run


def count(run) -> tuple[int, int]:
    """Calls that are not made by another call, and allocations."""
    for _ in range(2):  # tables and kernels are made once
        run()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    events = [e for e in seen.events() if e.name.startswith(("aten::", "mxm_kernels::"))]
    outer = [e for e in events if e.cpu_parent is None or not e.cpu_parent.name.startswith("aten")]
    return len(outer), sum(e.name in ALLOCATIONS for e in events)


def main() -> None:
    """Print a table of the backends that run here."""
    lines = []
    for name in backends.NAMES:
        if backends.load(name).unavailable(torch.device("cpu"), torch.float32) is None:
            lines.append([name, *map(str, count(step(name)))])
    print(table(["backend", "calls", "allocations"], lines))


if __name__ == "__main__":
    main()
