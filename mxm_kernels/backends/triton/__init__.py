"""The operator as Triton kernels: NVIDIA and AMD GPUs, or Triton's interpreter on a CPU.

Forward is one pass over the tiles of S and T for both directions (``statistics``); backward
writes dS tile by tile into a bounded workspace (``gradient``) and leaves the gradient
products to the vendor's BLAS; the sigmoid statistics (``sigmoid``, ``sigmoid_gradient``) go the
same way. Launch settings are a table in ``launch``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mxm_kernels.backends.base import Backend
from mxm_kernels.backends.interface import Memory, Problem

INSTALL = "on Linux `pip install 'mxm-kernels[triton]'` installs it"
LEAST = (8, 0)  # compute capability: bfloat16 products and asynchronous copies


def _launched(module: str, name: str) -> Callable[..., Any]:
    """A function of ``module`` as a method, on the device of its first tensor.

    Imported when first called, so that the package needs no Triton.
    """

    def method(self: _Triton, first: Any, *arguments: Any, **named: Any) -> Any:
        run = getattr(import_module(f"{__name__}.{module}"), name)
        tensor = first if isinstance(first, Tensor) else first[0]
        with torch.cuda.device_of(tensor):  # Triton launches on the current device
            return run(first, *arguments, **named)

    return method


class _Triton(Backend):
    """The backend; ``Backend`` says what each method takes and gives."""

    gives_neg_mean = True

    @property
    def fused_formulas(self) -> frozenset[str]:
        """The formulas of the kernel in ``rows``."""
        from mxm_kernels.backends.triton import rows

        return rows.FORMULAS

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return f"the package triton is not installed: {INSTALL}"
        if dtype == torch.float64:
            return "its kernels take float32, bfloat16 and float16, got float64; use 'blocked'"
        if device.type == "cuda":
            found = _capability(device)
            if found >= LEAST:
                return None
            return f"it needs a GPU of compute capability {LEAST} or newer, got {found}"
        from mxm_kernels.backends.triton import launch

        if device.type == "cpu" and launch.interpreted():
            return None
        return (
            f"it needs tensors on a CUDA or ROCm device, got {device} "
            "(set TRITON_INTERPRET=1 before importing to run its interpreter on the CPU)"
        )

    def kept_stride(self, problem: Problem, memory: Memory) -> int | None:
        from mxm_kernels.backends.triton import plan

        return plan.kept_stride(problem, memory)

    forward = _launched("statistics", "forward")
    backward = _launched("gradient", "backward")
    sigmoid_forward = _launched("sigmoid", "forward")
    sigmoid_backward = _launched("sigmoid_gradient", "backward")
    sigmoid_loss = _launched("sigmoid_gradient", "loss")
    sigmoid_loss_backward = _launched("sigmoid_scaling", "loss_backward")
    row_losses = _launched("rows", "row_losses")
    row_losses_backward = _launched("rows", "row_losses_backward")
    merge_queue = _launched("queues", "merge_queue")
    merge_queue_backward = _launched("queues", "merge_queue_backward")
    scale_rows = _launched("row_scales", "scale_rows")
    scale_rows_backward = _launched("row_scales", "scale_rows_backward")
    drawn_weights = _launched("draw", "drawn_weights")
    diagnostic_sums = _launched("diagnostics", "diagnostic_sums")
    float8_teacher = _launched("float8", "float8_teacher")
    target_matrix = _launched("target_matrix", "target_matrix")


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of an NVIDIA GPU; of another, or where none can be asked, the least."""
    if torch.version.hip is not None or not torch.cuda.is_available():
        return LEAST
    return torch.cuda.get_device_capability(device)


backend = _Triton()
