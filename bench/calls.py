"""Count the PyTorch calls, allocations and launches of one training step of a small batch.

    python -m bench.calls
    TRITON_INTERPRET=1 python -m bench.calls

At the paper's batch, 420 images and 350 texts, a step is a millisecond or two of arithmetic, and
every call that PyTorch dispatches adds microseconds. On a GPU it is the launches: with a GPU they
are counted as its profiler sees them; without, as the calls that compute something, which is what
each of them launches at the least, and the kernels that Triton interprets.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from itertools import product
from math import prod
from unittest.mock import patch

import torch
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile, record_function

from bench.markdown import table
from mxm_kernels import backends, checks, fused_mfh_loss

ALLOCATIONS = ("aten::empty", "aten::empty_strided")


# Calls that make a tensor without computing an element of it, or read one on the host.
_LAUNCH_NOTHING = re.compile(
    "aten::(empty.*|new_empty.*|resize_|as_strided|view|view_as|_unsafe_view|reshape|select|diagonal|slice|narrow|"
    "split.*|unbind|t|transpose|permute|expand.*|unsqueeze|squeeze|detach_?|alias|to|item|"
    "_local_scalar_dense|contiguous|result_type|is_nonzero|lift_fresh|set_|resolve_conj|resolve_neg|numpy_T)"
)


def step(
    backend: str,
    rows: tuple[int, int] = (420, 350),
    dimension: int = 512,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
):
    """One step of MFH with 10 rounds and a teacher, as a function."""
    x, y, tx, ty = (
        normalize(torch.randn(n, dimension)).to(device=device, dtype=dtype) for n in rows * 2
    )
    scale = torch.tensor(30.0, device=device, requires_grad=True)
    x.requires_grad_()
    y.requires_grad_()

    def run() -> None:
        x.grad = y.grad = scale.grad = None
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


def launches(run, device: str = "cpu") -> int:
    """Kernels that a step launches on a GPU: counted there, otherwise derived from its calls."""
    for _ in range(2):
        run()
    if device == "cuda":
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            run()
            torch.cuda.synchronize()
        kinds = torch.autograd.DeviceType.CUDA
        return sum(e.device_type == kinds for e in seen.events())
    with (
        patch.object(checks, "can_look", lambda tensor: False),  # as a GPU's numbers
        named_launches(lambda name: record_function(_TRITON)),
        profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen,
    ):
        run()
    return sum(_launches(event) for event in seen.events())


def readings(run, numbers: int) -> int:
    """How often a step's launches read a tensor of ``numbers``, without a GPU."""
    run()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        run()
    shapes = [shape for e in seen.events() if _launches(e) for shape in e.input_shapes]
    return sum(bool(shape) and prod(shape) == numbers for shape in shapes)


_TRITON = "launch of a Triton kernel"


@contextmanager
def named_launches(around):
    """Have the interpreter run each kernel inside ``around(its name)``, a context."""
    from triton.runtime.interpreter import GridExecutor

    plain = GridExecutor.__call__

    def named(self, *args, **kwargs):
        with around(self.fn.__name__):
            return plain(self, *args, **kwargs)

    GridExecutor.__call__ = named
    try:
        yield
    finally:
        GridExecutor.__call__ = plain


# One kernel on a GPU, whatever a CPU makes of them.
_ONE_LAUNCH = ("aten::mean",)


def _launches(event) -> bool:
    """Whether it is a kernel, or a call that computes and calls no other that does."""
    if event.name == _TRITON:
        return True
    ancestors = list(_ancestors(event))
    if any(e.name == _TRITON or e.name in _ONE_LAUNCH for e in ancestors):
        return False
    if event.input_shapes and 0 in event.input_shapes[0]:  # no element, no launch
        return False
    # A number among tensors is an argument of the kernel; on a CPU it is made a tensor.
    if event.name == "aten::copy_" and any(map(_computes, ancestors[2:3])):
        return False
    inside = event.name not in _ONE_LAUNCH and any(map(_computes, event.cpu_children))
    return _computes(event) and not inside


def _ancestors(event):
    while (event := event.cpu_parent) is not None:
        yield event


def _computes(event) -> bool:
    return event.name.startswith("aten::") and not _LAUNCH_NOTHING.fullmatch(event.name)


def main() -> None:
    """Print a table of the backends that run here."""
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    lines = []
    for device, name in product(devices, backends.REGISTRY):
        if backends.load(name).unavailable(torch.device(device), torch.float32) is not None:
            continue
        run = step(name, device=device)
        counted = str(launches(run, device)) if name == "triton" else ""
        lines.append([f"{name}, {device}", *map(str, count(run)), counted])
    print(table(["backend", "calls", "allocations", "launches"], lines))


if __name__ == "__main__":
    main()
