"""The base class of the backends: the methods that a backend writes, and those it inherits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mxm_kernels.backends import (
    diagnostics,
    draws,
    float8,
    queues,
    row_scales,
    target_matrix,
    tiles,
)
from mxm_kernels.backends.interface import (
    Gradients,
    Memory,
    Needs,
    Problem,
    SigmoidGradients,
    SigmoidLoss,
    SigmoidStatistics,
    SigmoidWeights,
    Statistics,
    Upstream,
)
from mxm_kernels.backends.row_interface import (
    DiagnosedRows,
    Draw,
    FusedFormula,
    QueuePlace,
    RowLosses,
    RowProblem,
    RowSums,
)


class Backend:
    """One implementation of the operators; a new one writes ``forward`` and ``backward``."""

    # Whether forward gives ``neg_mean``, and backward reads it.
    gives_neg_mean = False

    @property
    def fused_formulas(self) -> frozenset[str]:
        """Formulas of ``core.formulas``, by name, that ``row_losses`` computes in one kernel."""
        return frozenset()

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot run on ``device`` with ``dtype`` features, or None if it can."""
        return None

    def forward(
        self, problem: Problem, memory: Memory, diagnostics: bool = False, neg_sum: bool = False
    ) -> Statistics:
        """Compute the statistics; diagnostics change at most the order of the other sums.

        ``kept_stride`` says whether S and T are kept. They change no bit of the statistics.
        """
        raise NotImplementedError

    def backward(
        self,
        problem: Problem,
        statistics: Statistics,
        upstream: Upstream,
        needs: Needs,
        memory: Memory,
    ) -> Gradients:
        """Compute the gradients; upstream gradients may be of any size.

        S and T are read from ``statistics`` where forward kept them, and never written to.
        """
        raise NotImplementedError

    def kept_stride(self, problem: Problem, memory: Memory) -> int | None:
        """Stride of the rows of S and T that forward keeps, in numbers; None: it keeps nothing."""
        return None

    def sigmoid_forward(self, problem: Problem, bias: Tensor, memory: Memory) -> SigmoidStatistics:
        """Compute the sigmoid statistics; the problem has no teacher."""
        return _blocked().sigmoid_forward(problem, bias, memory)

    def sigmoid_backward(
        self,
        problem: Problem,
        bias: Tensor,
        positives: Tensor,
        upstream: SigmoidStatistics,
        needs: Needs,
        memory: Memory,
    ) -> SigmoidGradients:
        """Compute the gradients of the sigmoid statistics.

        ``positives`` (2 P,) are S of the positives, ``upstream`` the gradients of the statistics.
        """
        return _blocked().sigmoid_backward(problem, bias, positives, upstream, needs, memory)

    def sigmoid_loss(
        self, problem: Problem, bias: Tensor, weights: SigmoidWeights, needs: Needs, memory: Memory
    ) -> SigmoidLoss:
        """Compute the sigmoid loss and its gradients; the problem has no teacher.

        The loss is NaN where a feature is not finite, all is NaN where the scale is not positive.
        """
        return _blocked().sigmoid_loss(problem, bias, weights, needs, memory)

    def sigmoid_loss_backward(
        self, grad: Tensor, made: SigmoidLoss, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Multiply the gradients of the sigmoid loss by ``grad`` (); dx and dy come in ``dtype``.

        Where the loss is not finite, all of them are NaN.
        """
        return tiles.times(torch.add(grad, made.loss, alpha=0), made, dtype)

    def row_losses(self, rows: RowProblem, formula: FusedFormula) -> RowLosses:
        """Compute a formula of ``fused_formulas`` and the soft loss, and their derivatives.

            losses = hard hard_weights formula + soft soft_weights (logsumexp - teacher_mean)

        ``core.formulas`` defines both.
        """
        raise NotImplementedError

    def row_losses_backward(
        self,
        grad: Tensor,
        checked: Tensor | None,
        made: RowLosses,
        rows: RowProblem,
        formula: FusedFormula,
    ) -> RowLosses:
        """Multiply the derivatives by ``grad``, the upstream gradient: (R,) of losses, () of a sum.

        ``checked`` is the sum () of the losses, or the losses (R,), which are all NaN where one is
        not finite. Where ``checked`` is not finite, all results are NaN. The first field of the
        result is the gradient of ``teacher_mean``. The gradient of the parameter has its shape.
        """
        if checked is not None:
            grad = torch.add(grad, checked, alpha=0)
        weights, factor = formula.target_weights(rows)
        by_parameter = grad * made.d_parameter if rows.parameter.numel() else grad.new_empty(0)
        return RowLosses(
            grad * weights * -factor if len(rows.teacher_mean) else grad.new_empty(0),
            grad * made.d_neg_lse,
            (grad.index_select(0, rows.owners) if grad.ndim else grad) * made.d_positives,
            by_parameter.sum() if rows.parameter.ndim == 0 else by_parameter,
            grad * made.d_neg_sum if len(rows.neg_sum) else grad.new_empty(0),
        )

    def merge_queue(
        self, rows: RowSums, queue: RowSums, total: Tensor, place: QueuePlace
    ) -> RowSums:
        """(R,) each: the sums of all rows with a queue's columns; see ``queues``."""
        return queues.merged(rows, queue, total, place)

    def merge_queue_backward(
        self, dn: Tensor, du: Tensor, rows: RowSums, queue: RowSums, place: QueuePlace
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of n and u of the rows, then of n and u of the queue's list."""
        return queues.gradients(dn, du, rows, queue, place)

    def scale_rows(
        self, features: Sequence[Tensor], scales: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """Up to 4 matrices (rows, D) times their scales (rows,), and 1 (); see ``row_scales``."""
        made = [row_scales.scaled(x, s) for x, s in zip(features, scales, strict=True)]
        return made, scales[0].new_ones(())

    def scale_rows_backward(
        self,
        features: Sequence[Tensor],
        scales: Sequence[Tensor],
        dz: Sequence[Tensor],
        dx: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of up to 2 matrices, and of their scales.

        ``dz`` are the gradients of the scaled matrices. ``dx`` are the gradients that reach the
        matrices by another way.
        """
        pairs = [row_scales.gradients(*g) for g in zip(features, scales, dz, dx, strict=True)]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    def drawn_weights(self, draw: Draw, dtype: torch.dtype) -> Tensor:
        """(L,) share of the rounds in which each positive was drawn by its row; see ``draws``."""
        return draws.drawn_weights(draw, dtype)

    def diagnostic_sums(self, rows: DiagnosedRows) -> Tensor:
        """(2, F) sums of the diagnostics, and how many numbers each is of; see ``diagnostics``."""
        return diagnostics.diagnostic_sums(rows)

    def float8_teacher(
        self, a: Tensor, b: Tensor, t: Tensor, largest: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features (M, D'), (N, D') rounded to float8, and () their scale; see ``float8``."""
        return float8.float8_teacher(a, b, t, largest)

    def target_matrix(self, a: Tensor, b: Tensor, factors: Tensor) -> Tensor:
        """(M, N) the matrix of a mean target; see ``target_matrix``."""
        return target_matrix.target_matrix(a, b, factors)


def _blocked() -> Backend:
    """The backend that runs anywhere, which has the sigmoid operators for one that has none."""
    from mxm_kernels.backends.blocked import backend

    return backend
