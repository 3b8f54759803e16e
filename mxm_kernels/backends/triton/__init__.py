"""The operator as Triton kernels: NVIDIA and AMD GPUs, or Triton's interpreter on a CPU.

Forward is one pass over the tiles of S and T for both directions (``statistics``); backward
writes dS tile by tile into a bounded workspace (``gradient``) and leaves the gradient
products to the vendor's BLAS; the sigmoid statistics (``sigmoid``, ``sigmoid_gradient``) go the
same way. Launch settings are a table in ``launch``.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from mxm_kernels.backends.problem import (
    Draw,
    Form,
    Gradients,
    Needs,
    Problem,
    RowLosses,
    RowProblem,
    Shares,
    Sides,
    SigmoidGradients,
    SigmoidLoss,
    SigmoidStatistics,
    SigmoidWeights,
    Statistics,
    Upstream,
)


class _Triton:
    """The backend; kernels are imported when first run, so that the package needs no Triton."""

    pair_parts = 2  # of the rows and of the columns, which one launch computes apart

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

    def kept_shape(self, problem: Problem) -> tuple[int, ...]:
        return (0,)

    def backward(
        self,
        problem: Problem,
        statistics: Statistics,
        upstream: Upstream,
        needs: Needs,
        factor: Tensor | None = None,
    ) -> Gradients:
        from mxm_kernels.backends.triton import gradient

        with torch.cuda.device_of(problem.x):
            return gradient.backward(problem, statistics, upstream, needs, factor)

    def sigmoid_forward(self, problem: Problem, bias: Tensor) -> SigmoidStatistics:
        from mxm_kernels.backends.triton import sigmoid

        with torch.cuda.device_of(problem.x):
            return sigmoid.forward(problem, bias)

    def sigmoid_backward(
        self,
        problem: Problem,
        bias: Tensor,
        positives: Tensor,
        upstream: SigmoidStatistics,
        needs: Needs,
    ) -> SigmoidGradients:
        from mxm_kernels.backends.triton import sigmoid_gradient

        with torch.cuda.device_of(problem.x):
            return sigmoid_gradient.backward(problem, bias, positives, upstream, needs)

    def sigmoid_loss(
        self, problem: Problem, bias: Tensor, weights: SigmoidWeights, needs: Needs
    ) -> SigmoidLoss:
        from mxm_kernels.backends.triton import sigmoid_gradient

        with torch.cuda.device_of(problem.x):
            return sigmoid_gradient.loss(problem, bias, weights, needs)

    def times(
        self, grad: Tensor, dx: Tensor, dy: Tensor, dscalars: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        from mxm_kernels.backends.triton import sigmoid_gradient

        with torch.cuda.device_of(grad):
            return sigmoid_gradient.times(grad, dx, dy, dscalars, dtype)

    def mixed_rows(
        self, problem: RowProblem, form: Form, hard: float, soft: float, columns: int
    ) -> RowLosses:
        from mxm_kernels.backends.triton import rows

        with torch.cuda.device_of(problem.n):
            return rows.mixed_rows(problem, form, hard, soft, columns)

    def mixed_loss(
        self,
        problem: Problem,
        statistics: Statistics,
        sides: Sides,
        form: Form,
        shares: Shares,
    ) -> tuple[Tensor, Upstream, Tensor | None]:
        from mxm_kernels.backends.triton import rows

        with torch.cuda.device_of(problem.x):
            return rows.mixed_loss(problem, statistics, sides, form, shares)

    def drawn_weights(self, draw: Draw, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        from mxm_kernels.backends.triton.draw import drawn_weights

        assert dtype == torch.float32, "the backend takes no float64"
        with torch.cuda.device_of(draw.seed):
            return drawn_weights(draw)


backend = _Triton()
