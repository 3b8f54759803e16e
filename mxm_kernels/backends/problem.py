"""What the operator hands to a backend, and what it wants back.

Symbols as in the operator: x (M, D) image features, y (N, D) text features, X and Y their
momentum teacher's, s and t the two scales, P positive pairs.

    S_ij = s <x_i, y_j>          T_ij = t <X_i, Y_j>

    n_i = logsumexp_{j not in Pos(i)} S_ij           n_j  the same down column j
    t_i = logsumexp_j T_ij                           t_j
    u_i = sum_j softmax_j(T_i.) S_ij                 u_j

and for diagnostics, not differentiable, the hardest negative and the entropy of the teacher:

    m_i = max_{j not in Pos(i)} S_ij                 m_j
    h_i = t_i - sum_j softmax_j(T_i.) T_ij           h_j

The sigmoid statistics have a bias b instead of a teacher:

    r_i = sum_{j not in Pos(i)} softplus(S_ij + b)   r_j

and the sigmoid loss has weights a of the rows, a' of the columns, w and w' of the positives, which
are 1 at negatives; z is 1 at positives and -1 at negatives:

    L = sum_ij (a_i w_ij + a'_j w'_ij) softplus(-z_ij (S_ij + b))
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor


class Problem(NamedTuple):
    """One batch: features, scales and where its positive pairs are."""

    x: Tensor  # (M, D)
    y: Tensor  # (N, D)
    teacher_x: Tensor | None  # (M, D), in the dtype of x or in float8 (e4m3fn)
    teacher_y: Tensor | None  # (N, D)
    scale: Tensor  # (), float32 (float64 for float64 features)
    teacher_scale: Tensor | None  # ()
    image_groups: Tensor  # (M,) int32
    text_groups: Tensor  # (N,) int32
    image_offsets: Tensor  # (M + 1,) int64
    pair_images: Tensor  # (P,) int64
    pair_texts: Tensor  # (P,) int64

    @property
    def accumulator(self) -> torch.dtype:
        """Dtype of everything after the products: float32, or float64 for float64 features."""
        return torch.float64 if self.x.dtype == torch.float64 else torch.float32

    @property
    def gradient_dtype(self) -> torch.dtype:
        """Dtype of gradients that are yet to be multiplied by an upstream gradient.

        float16 could not hold what loss scaling has not raised: a mean's gradients are below 6e-8.
        """
        return torch.float32 if self.x.dtype == torch.float16 else self.x.dtype

    @property
    def has_teacher(self) -> bool:
        """Whether T exists."""
        return self.teacher_x is not None

    @property
    def is_float8(self) -> bool:
        """Whether the teacher is in float8: a NaN among its features is one of its scale too."""
        return self.teacher_x is not None and self.teacher_x.dtype == torch.float8_e4m3fn

    def room(self, diagnostics: bool) -> Statistics:
        """Uninitialised statistics; those that do not exist here have no element."""
        rows, cols = self.x.shape[0], self.y.shape[0]
        both, none = [rows, cols], [0, 0]
        sizes = both + [self.pair_images.shape[0]] + (both if self.has_teacher else none) * 2
        sizes += both if diagnostics else none
        sizes += both if diagnostics and self.has_teacher else none
        sizes += [0]
        return Statistics(*(self.x.new_empty(n, dtype=self.accumulator) for n in sizes))

    def contiguous(self) -> Problem:
        """The same problem with every feature matrix laid out row after row."""
        teacher_x, teacher_y = self.teacher_x, self.teacher_y
        return self._replace(
            x=self.x.contiguous(),
            y=self.y.contiguous(),
            teacher_x=None if teacher_x is None else teacher_x.contiguous(),
            teacher_y=None if teacher_y is None else teacher_y.contiguous(),
        )


class Statistics(NamedTuple):
    """What forward returns: O(M + N + P) numbers.

    Without a teacher u, t and h are empty; m and h are where no diagnostics are wanted. ``kept``
    is bounded by a constant of the backend.
    """

    n_rows: Tensor  # (M,) log-sum-exp over the negatives of each row
    n_cols: Tensor  # (N,) the same for columns
    positives: Tensor  # (P,) S of every positive pair, in slot order
    u_rows: Tensor  # (M,) S averaged with the teacher's softmax over the row
    u_cols: Tensor  # (N,)
    t_rows: Tensor  # (M,) log-sum-exp of T over the row, kept for backward
    t_cols: Tensor  # (N,)
    m_rows: Tensor  # (M,) greatest S over the negatives of each row, -inf without one
    m_cols: Tensor  # (N,)
    h_rows: Tensor  # (M,) entropy of the teacher's softmax over the row, in nats
    h_cols: Tensor  # (N,)
    kept: Tensor  # products of both matrices for backward, in a backend's own shape, or empty


class Upstream(NamedTuple):
    """Gradients of the loss with respect to the differentiable statistics."""

    n_rows: Tensor
    n_cols: Tensor
    positives: Tensor  # (parts, P), of which it is the sum
    u_rows: Tensor
    u_cols: Tensor


class SigmoidStatistics(NamedTuple):
    """What the forward of the sigmoid statistics returns, and their upstream gradients."""

    r_rows: Tensor  # (M,) sum of softplus(S + b) over the negatives of each row
    r_cols: Tensor  # (N,) the same for columns
    positives: Tensor  # (P,) S of every positive pair, in slot order


# Losses of the positives of a row; ``pairs.mixed_rows`` has their equations.
FormName = Literal["none", "masked", "unmasked", "decoupled", "joint", "whole", "debiased"]


class Form(NamedTuple):
    """A loss of the positives of a row."""

    name: FormName
    prior: float = 0.0  # of "debiased"


class RowProblem(NamedTuple):
    """The rows of one direction, as the row operators take them."""

    n: Tensor  # (rows,)
    S: Tensor  # (P,) positives, sorted by row
    u: Tensor  # (rows,), or empty where the soft loss has no share
    weights: Tensor  # (P,), or empty where the form weighs no positive
    offsets: Tensor  # (rows + 1,) int64
    hard_weights: Tensor  # (rows,) of each row's loss of the positives, or empty: 1 each
    soft_weights: Tensor  # (rows,) of each row's soft loss, or empty
    scale: Tensor  # (), or empty where the form is not "debiased"


class RowLosses(NamedTuple):
    """Losses of the rows and their derivatives."""

    losses: Tensor  # (rows,)
    dn: Tensor  # (rows,)
    dS: Tensor  # (P,)
    dscale: Tensor | None = None  # (rows,) by the scale, beside that by S, of "debiased"


class Sides(NamedTuple):
    """The positive pairs seen from the texts, and the weights of the pairs on either side."""

    row_weights: Tensor  # (P,) in slot order, or empty where the form weighs no positive
    col_weights: Tensor  # (P,) in text-major order, or empty
    text_offsets: Tensor  # (N + 1,) int64
    text_slots: Tensor  # (P,) int64, slot of each pair in text-major order
    slot_places: Tensor  # (P,) int64, place in text-major order of each slot
    row_hard_weights: Tensor  # (M,) of each row's loss of the positives, or empty: 1 each
    row_soft_weights: Tensor  # (M,) of each row's soft loss, or empty
    col_hard_weights: Tensor  # (N,) the same of the columns
    col_soft_weights: Tensor  # (N,)


class Shares(NamedTuple):
    """Factors of the hard and soft losses of every row and column, their mean's included."""

    hard_rows: float
    soft_rows: float
    hard_cols: float
    soft_cols: float


class Draw(NamedTuple):
    """What decides which positives are drawn, the same on every backend: see ``pairs._chosen``."""

    seed: Tensor  # () int64
    image_offsets: Tensor  # (M + 1,) int64
    text_offsets: Tensor  # (N + 1,) int64
    rounds: int  # R
    pairs: int  # P


class Needs(NamedTuple):
    """Which gradients are wanted; a frozen tower costs no product."""

    x: bool
    y: bool
    scale: bool
    bias: bool = False


class Gradients(NamedTuple):
    """What backward returns; empty where not wanted."""

    x: Tensor  # (M, D), dtype of the features
    y: Tensor  # (N, D)
    scale: Tensor  # ()


class SigmoidGradients(NamedTuple):
    """What the backward of the sigmoid statistics returns; empty where not wanted."""

    x: Tensor  # (M, D), dtype of the features
    y: Tensor  # (N, D)
    scale: Tensor  # ()
    bias: Tensor  # ()


class SigmoidWeights(NamedTuple):
    """What the terms of the sigmoid loss are multiplied with."""

    rows: Tensor  # (M,) a
    cols: Tensor  # (N,) a'
    row_pairs: Tensor  # (P,) w in slot order, or empty: 1 each
    col_pairs: Tensor  # (P,) w' in slot order, or empty


class SigmoidLoss(NamedTuple):
    """The sigmoid loss and its gradients, which one pass gives; empty where not wanted."""

    loss: Tensor  # ()
    dx: Tensor  # (M, D), in the problem's ``gradient_dtype``
    dy: Tensor  # (N, D)
    dscalars: Tensor  # (2,) by the scale and by the bias


class Backend(Protocol):
    """One implementation of the operator."""

    pair_parts: int  # in which mixed_loss gives the gradient by the positives

    def unavailable(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot run on ``device`` with ``dtype`` features, or None if it can."""
        ...

    def forward(self, problem: Problem, diagnostics: bool = False) -> Statistics:
        """Compute the statistics; diagnostics change at most the order of the other sums."""
        ...

    def kept_shape(self, problem: Problem) -> tuple[int, ...]:
        """Shape of what forward keeps for backward."""
        ...

    def backward(
        self,
        problem: Problem,
        statistics: Statistics,
        upstream: Upstream,
        needs: Needs,
        factor: Tensor | None = None,
    ) -> Gradients:
        """Compute the gradients, ``factor`` () times those of ``upstream``."""
        ...

    def sigmoid_forward(self, problem: Problem, bias: Tensor) -> SigmoidStatistics:
        """Compute the sigmoid statistics; the problem has no teacher."""
        ...

    def sigmoid_backward(
        self,
        problem: Problem,
        bias: Tensor,
        positives: Tensor,
        upstream: SigmoidStatistics,
        needs: Needs,
    ) -> SigmoidGradients:
        """Compute their gradients from S of the ``positives`` and those of the statistics."""
        ...

    def sigmoid_loss(
        self, problem: Problem, bias: Tensor, weights: SigmoidWeights, needs: Needs
    ) -> SigmoidLoss:
        """Compute the sigmoid loss and its gradients; the problem has no teacher.

        The loss is NaN where a feature is not finite, all is NaN where the scale is not positive.
        """
        ...

    def times(
        self, grad: Tensor, dx: Tensor, dy: Tensor, dscalars: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Multiply gradients of the sigmoid loss by ``grad`` (); dx and dy come in ``dtype``."""
        ...

    def mixed_rows(
        self, problem: RowProblem, form: Form, hard: float, soft: float, columns: int
    ) -> RowLosses:
        """Compute the mixed losses of the rows of one direction; see ``pairs.mixed_rows``."""
        ...

    def mixed_loss(
        self,
        problem: Problem,
        statistics: Statistics,
        sides: Sides,
        form: Form,
        shares: Shares,
    ) -> tuple[Tensor, Upstream, Tensor | None]:
        """Compute the mixed loss () of both directions, and its gradient by the statistics.

        And, for "debiased", () that by the scale beside that by S. NaN where a feature is not
        finite (see ``pairs.mixed_rows``) or a scale not positive.
        """
        ...

    def drawn_weights(self, draw: Draw, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Count how often each positive was drawn on either side; see ``operators.rows``."""
        ...
