"""Where a step's time goes: each kernel, dX, dY and the additions apart, by events in the stream.

Triton's launch hooks mark the kernels. A dispatch mode marks what PyTorch computes, so a phase is
run as a call of the backend, which the mode sees into. Marking costs the host some microseconds a
call, which kernels of a millisecond hide; the parts of small batches say nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs

from bench.calls import named_launches

PARTS = {
    "units_kernel": "units and positives",
    "statistics_kernel": "statistics",
    "stored_statistics_kernel": "statistics",
    "sigmoid_statistics_kernel": "statistics",
    "stored_sigmoid_statistics_kernel": "statistics",
    "merge_kernel": "merge",
    "tops_kernel": "units and positives",
    "gradient_kernel": "dS",
    "stored_gradient_kernel": "dS of kept products",
    "stored_sigmoid_gradient_kernel": "dS",
    "sigmoid_gradient_kernel": "dS",
    "pair_gradient_kernel": "positives of dS",
    "sigmoid_pairs_kernel": "positives of dS",
    "scale_gradient_kernel": "gradient of the scale",
    "raise_kernel": "upstream gradients raised",
}
# PyTorch's calls that add one product to another or change a product's dtype.
ADDITIONS = ("add_", "copy_", "_to_copy", "div_", "mul_")
VIEWS = (
    *("view", "_unsafe_view", "slice", "transpose", "t", "permute", "select", "detach", "alias"),
    *("expand", "as_strided", "squeeze", "unsqueeze", "set_"),
)


class Parts:
    """Seconds by part, while it is entered."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.spans: list[tuple[str, Any, Any]] = []

    def now(self) -> Any:
        """A mark in the stream, or the time on a CPU."""
        if not self.cuda:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add(self, name: str, began: Any) -> None:
        """What began is over."""
        self.spans.append((name, began, self.now()))

    def seconds(self) -> dict[str, float]:
        """The sum of every part, the longest first."""
        if self.cuda:
            torch.cuda.synchronize()
        total: dict[str, float] = defaultdict(float)
        for name, began, ended in self.spans:
            total[name] += began.elapsed_time(ended) / 1e3 if self.cuda else ended - began
        return dict(sorted(total.items(), key=lambda item: -item[1]))


class _Products(TorchDispatchMode):
    """Marks what PyTorch computes."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in VIEWS or name.startswith(("new_", "empty")):
            return func(*args, **(kwargs or {}))
        began = self.parts.now()
        result = func(*args, **(kwargs or {}))
        self.parts.add(_label(name, args), began)
        return result


def _label(name: str, args: tuple[Any, ...]) -> str:
    if name in ("mm", "addmm", "addmm_"):
        a = args[0] if name == "mm" else args[1]
        return "dX" if a.stride(-1) == 1 else "dY"  # dS as it lies, or its transpose
    return "additions" if name in ADDITIONS else f"PyTorch's {name}"


@contextmanager
def _kernels(parts: Parts) -> Iterator[None]:
    """Mark Triton's launches, or what its interpreter runs."""
    began: list[Any] = []

    def enter(metadata: Any) -> None:
        began.append(parts.now())

    def leave(metadata: Any) -> None:
        name = metadata.get()["name"]
        parts.add(PARTS.get(name, name), began.pop())

    if not parts.cuda:
        with named_launches(lambda name: _spanned(parts, name)):
            yield
        return
    runtime = knobs.runtime
    runtime.launch_enter_hook.add(enter)
    runtime.launch_exit_hook.add(leave)
    try:
        yield
    finally:
        runtime.launch_enter_hook.remove(enter)
        runtime.launch_exit_hook.remove(leave)


@contextmanager
def _spanned(parts: Parts, name: str) -> Iterator[None]:
    began = parts.now()
    yield
    parts.add(PARTS.get(name, name), began)


def measure(run: Callable[[], object], device: torch.device, repeats: int) -> dict[str, float]:
    """Seconds of the parts of a run, means over the repeats, after one that warms up."""
    run()
    parts = Parts(device)
    with _kernels(parts), _Products(parts):
        for _ in range(repeats):
            run()
    return {name: seconds / repeats for name, seconds in parts.seconds().items()}
