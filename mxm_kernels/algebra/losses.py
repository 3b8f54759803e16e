"""The loss algebra: each loss is a few lines over the operator's statistics.

Everything here is per row of one :class:`Direction` and touches O(rows + P) numbers. S_ik is a
positive similarity, n_i the log-sum-exp over the negatives, p_i over the positives, u_i the
teacher's average of the row, and w_ik the weight of positive k, with sum_k w_ik = 1:

    masked      sum_k w_ik softplus(n_i - S_ik)             the other positives masked out
    unmasked    sum_k w_ik (logaddexp(n_i, p_i) - S_ik)     they stay in the denominator
    decoupled   sum_k w_ik (n_i - S_ik)                     no positive in the denominator
    debiased    sum_k w_ik softplus(g_i - S_ik)             g_i below
    joint       softplus(n_i - p_i)                         positives summed inside the log
    soft        logaddexp(n_i, p_i) - u_i                   cross-entropy with the teacher

A row without a positive has loss 0 everywhere but in ``soft``, a row without a negative in
``masked``, ``decoupled``, ``debiased`` and ``joint``; neither gives NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mxm_kernels.algebra.direction import Direction, add_log
from mxm_kernels.backends.problem import Form, RowProblem
from mxm_kernels.operators.rows import mixed_rows


def masked_rows(d: Direction, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """InfoNCE of each positive with the others masked (MXM-CLR, arXiv 2303.10839, eq. 6)."""
    return d.sum(weights * _against(d, d.n, smoothing))


def unmasked_rows(d: Direction, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Each positive against everything: SupCon's L_out (arXiv 2004.11362, eq. 2)."""
    target = d.S
    if smoothing:
        assert d.total is not None
        target = (1 - smoothing) * d.S + smoothing * d.spread(d.total / d.columns)
    return d.sum(weights * (d.spread(add_log(d.n, d.logsumexp(d.S))) - target))


def decoupled_rows(d: Direction, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Decoupled contrastive learning (arXiv 2110.06848, eq. 6): negatives only below."""
    target = d.S
    if smoothing:
        total, count = _over_negatives(d)
        target = (1 - smoothing) * d.S + smoothing * d.spread(total / count.clamp(min=1))
    n = d.n.masked_fill(~d.has_negative, 0)
    losses = d.sum(weights * (d.spread(n) - target))
    return losses.masked_fill(~d.has_negative, 0)


@dataclass(frozen=True)
class DebiasedRows:
    """Debiased contrastive loss (arXiv 2007.00224, eq. 8) with tau = ``prior``.

    The sum over the negatives, exp(n_i), becomes exp(g_i): free of the positives expected
    among them, and no less than unit features can make it:

        exp(g_i) = max((exp(n_i) - tau |Neg| mean_k exp(S_ik)) / (1 - tau), |Neg| exp(-s))
    """

    prior: float

    def __call__(self, d: Direction, weights: Tensor, smoothing: float = 0.0) -> Tensor:
        """(rows,) losses of the rows."""
        negatives = (d.columns - d.counts).clamp(min=1).to(d.n.dtype)
        positives = d.logsumexp(d.S) - d.counts.clamp(min=1).to(d.n.dtype).log()
        floor = negatives.log() - d.scale
        n = d.n.masked_fill(~d.has_negative, 0)
        if self.prior > 0:
            excess = math.log(self.prior) + negatives.log() + positives - n
            usable = ~(excess >= 0) & d.has_positive  # NaN is, and shows in the loss
            without = n + torch.log1p(-excess.masked_fill(~usable, -1).exp())
            without = without - math.log1p(-self.prior)
            g = torch.where(usable, torch.maximum(without, floor), floor)
        else:
            g = torch.maximum(n, floor)
        return d.sum(weights * _against(d, g, smoothing)).masked_fill(~d.has_negative, 0)


def joint_rows(d: Direction, weights: object, smoothing: float = 0.0) -> Tensor:
    """All positives summed inside the logarithm: SupCon's L_in (arXiv 2004.11362, eq. 3).

    No positive has a weight of its own; ``weights`` is not used.
    """
    positives = d.logsumexp(d.S).masked_fill(~d.has_positive, 0)
    losses = -logsigmoid(positives - d.n)
    if smoothing:
        assert d.total is not None
        losses = losses + smoothing * (positives - d.total / d.columns)
    return losses.masked_fill(~d.has_positive, 0)


def row_losses(
    d: Direction,
    form: Form,
    weights: Tensor | None = None,
    *,
    hard: float = 1.0,
    soft: float = 0.0,
    counts: tuple[int, int] = (1, 1),
) -> Tensor:
    """(rows,) a form and the soft loss together, in one operator; the weights get no gradient."""
    none = d.S.new_empty(0)
    weights = none if weights is None else weights
    scale = d.scale if form.name == "debiased" else none
    return mixed_rows(
        RowProblem(d.n, d.S, d.u, weights, d.segments.offsets, none, none, scale),
        d.segments.owners,
        form,
        d.backend,
        hard=hard,
        soft=soft,
        counts=counts,
        columns=d.columns if isinstance(d.columns, int) else 0,
    )


def soft_rows(d: Direction) -> Tensor:
    """Cross-entropy against the teacher's row (MXM-CLR, arXiv 2303.10839, eq. 8)."""
    return logsumexp_rows(d) - d.u


def logsumexp_rows(d: Direction, weights: object = None, smoothing: float = 0.0) -> Tensor:
    """Log-sum-exp of the whole row: negatives, positives, and what a queue leaves out.

    As a loss it is what a target is yet to be taken from; ``weights`` are not used.
    """
    everything = add_log(d.n, d.logsumexp(d.S))
    return everything if d.excluded is None else add_log(everything, d.excluded)


def _against(d: Direction, n: Tensor, smoothing: float) -> Tensor:
    """(P,) softplus(n_i - S_ik), each target smoothed over its positive and the negatives."""
    # softplus multiplies the upstream gradient by an exponential up to exp(threshold) in backward.
    losses = -logsigmoid(d.S - d.spread(n))
    if not smoothing:
        return losses
    total, count = _over_negatives(d)
    mean = (d.spread(total) + d.S) / d.spread(count + 1)
    return losses + smoothing * (d.S - mean)


def _over_negatives(d: Direction) -> tuple[Tensor, Tensor]:
    """Sum of S over the negatives of each row, and their number."""
    assert d.total is not None, "label smoothing needs the sums of the rows"
    return d.total - d.sum(d.S), d.columns - d.counts


# Those that the row operators compute too, and their form there.
FORMS: dict[object, Form] = {
    None: Form("none"),  # the soft loss alone
    masked_rows: Form("masked"),
    unmasked_rows: Form("unmasked"),
    decoupled_rows: Form("decoupled"),
    joint_rows: Form("joint"),
    logsumexp_rows: Form("whole"),
}


def form_of(formula: object) -> Form | None:
    """The form of a formula in the row operators, if they compute it."""
    if isinstance(formula, DebiasedRows):
        return Form("debiased", formula.prior)
    return FORMS.get(formula)
