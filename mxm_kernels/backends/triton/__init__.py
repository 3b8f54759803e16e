"""The operator as Triton kernels: NVIDIA and AMD GPUs, or Triton's interpreter on a CPU.

Forward is one pass over the tiles of S and T for both directions (``statistics``); backward
writes dS tile by tile into a bounded workspace (``gradient``) and leaves the gradient
products to the vendor's BLAS. Launch settings are a table in ``launch``.
"""

from __future__ import annotations

import importlib.util

import torch

from mxm_kernels.backends.problem import Gradients, Needs, Problem, Statistics, Upstream


class _Triton:
    """The backend; kernels are imported when first run, so that the package needs no Triton."""

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        if dtype == torch.float64:
            return "its kernels take float32, bfloat16 and float16, got float64; use 'blocked'"
        if device.type == "cuda":
            return None
        from mxm_kernels.backends.triton import launch

        if device.type == "cpu" and launch.interpreted():
            return None
        return (
            f"it needs tensors on a CUDA or ROCm device, got {device} "
            "(set TRITON_INTERPRET=1 before importing to run its interpreter on the CPU)"
        )

    def forward(self, problem: Problem, diagnostics: bool = False) -> Statistics:
        from mxm_kernels.backends.triton import statistics

        with torch.cuda.device_of(problem.x):  # Triton launches on the current device
            return statistics.forward(problem, diagnostics)

    def backward(
        self, problem: Problem, statistics: Statistics, upstream: Upstream, needs: Needs
    ) -> Gradients:
        from mxm_kernels.backends.triton import gradient

        with torch.cuda.device_of(problem.x):
            return gradient.backward(problem, statistics, upstream, needs)


backend = _Triton()
