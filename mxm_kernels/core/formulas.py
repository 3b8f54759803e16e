"""The losses of a row, each written once: functions of the list of rows.

A formula takes the list (R rows, L positives) and the weights (L,) of its positives, and returns
the losses (R,) of its rows. S_ik is the similarity of row i and its positive k. n_i is the
log-sum-exp of S over the negatives of row i, p_i over its positives, u_i the average of S under the
teacher's softmax, and w_ik the weight of positive k, with sum_k w_ik = 1:

    info_nce      sum_k w_ik softplus(n_i - S_ik)             the other positives left out
    supcon_out    sum_k w_ik (logaddexp(n_i, p_i) - S_ik)     all positives in the denominator
    supcon_in     softplus(n_i - p_i)                         positives summed inside the log
    decoupled     sum_k w_ik (n_i - S_ik)                     no positive in the denominator
    debiased      sum_k w_ik softplus(g_i - S_ik)             g_i below
    logsumexp     logaddexp(n_i, p_i)                         CWCL subtracts its target from it
    soft          logaddexp(n_i, p_i) - u_i                   cross-entropy with the teacher

A row without a positive has loss 0 in all but the last two. A row without a negative has loss 0 in
``info_nce``, ``supcon_in``, ``decoupled`` and ``debiased``. Neither gives NaN.

Label smoothing gives a share e of each target evenly to all similarities in its denominator. A loss
is linear in its targets. So smoothing adds e times (S of the positives minus the mean of those
similarities) (Szegedy et al., arXiv 1512.00567, section 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mxm_kernels.core.add_log import add_log
from mxm_kernels.core.rows import Rows
from mxm_kernels.core.symbols import as_operand


@dataclass(frozen=True)
class Formula:
    """A loss of the rows with a name, by which a backend's ``fused_formulas`` lists its kernels.

    A plain function of the rows and the weights is a formula too, without a kernel.
    """

    name: str
    losses: Callable[..., Tensor]  # (rows, weights[, constant]) -> (R,)
    smoothing: Callable[[Rows, Any], Tensor] | None = None  # what label smoothing adds, over e
    constant: float | None = None
    parameter: str | None = None  # field of the list, beside n and S, that has a derivative
    reads_negatives: bool = False  # whether it reads the number of negatives
    weighs: bool = True  # whether it reads the weights
    of_every_row: bool = False  # whether rows without a positive count in its mean

    def __call__(self, rows: Rows, weights: Tensor | None) -> Tensor:
        """(R,) losses of the rows."""
        given: tuple[Any, ...] = () if self.constant is None else (self.constant,)
        losses, excess = self.losses(rows, weights, *given), self.smoothed(rows, weights)
        return losses if excess is None else losses + rows.label_smoothing * excess

    def smoothed(self, rows: Rows, weights: Tensor | None) -> Tensor | None:
        """(R,) what label smoothing adds, over e; None where it adds nothing."""
        if self.smoothing is None or rows.neg_sum is None:
            return None
        return self.smoothing(rows, weights)


def _info_nce(rows: Rows, weights: Tensor) -> Tensor:
    """InfoNCE of each positive with the others masked (MXM-CLR, arXiv 2303.10839, eq. 6)."""
    return rows.sum(weights * _against(rows, rows.neg_lse))


def _supcon_out(rows: Rows, weights: Tensor) -> Tensor:
    """Each positive against everything: SupCon's L_out (arXiv 2004.11362, eq. 2)."""
    S = rows.positives
    return rows.sum(weights * (rows.spread(add_log(rows.neg_lse, rows.logsumexp(S))) - S))


def _supcon_in(rows: Rows, weights: object) -> Tensor:
    """All positives summed inside the logarithm: SupCon's L_in (arXiv 2004.11362, eq. 3)."""
    p = rows.logsumexp(rows.positives).masked_fill(~rows.has_positive, 0)
    return -logsigmoid(p - rows.neg_lse).masked_fill(~rows.has_positive, 0)


def _decoupled(rows: Rows, weights: Tensor) -> Tensor:
    """Decoupled contrastive learning (arXiv 2110.06848, eq. 6): negatives only below."""
    n = rows.neg_lse.masked_fill(~rows.has_negative, 0)
    losses = rows.sum(weights * (rows.spread(n) - rows.positives))
    return torch.where(rows.has_negative, losses, losses * 0)  # 0, or NaN where a positive is


def _debiased(rows: Rows, weights: Tensor, prior: float) -> Tensor:
    """Debiased contrastive loss (arXiv 2007.00224, eq. 8) with tau = ``prior``.

    The sum over the negatives, exp(n_i), becomes exp(g_i): free of the positives expected
    among them, and no less than unit features can make it:

        exp(g_i) = max((exp(n_i) - tau |Neg| mean_k exp(S_ik)) / (1 - tau), |Neg| exp(-s))
    """
    negatives = rows.num_negatives.clamp(min=1)
    positives = rows.counts.clamp(min=1).to(negatives.dtype)
    floor = negatives.log() - rows.logit_scale
    n = rows.neg_lse.masked_fill(~rows.has_negative, 0)
    if prior > 0:
        mean = rows.logsumexp(rows.positives) - positives.log()
        log_prior, log_rest = _logs(prior, n)
        excess = log_prior + negatives.log() + mean - n
        usable = ~(excess >= 0) & rows.has_positive  # NaN is, and shows in the loss
        without = n + torch.log1p(-excess.masked_fill(~usable, -1).exp())
        g = torch.maximum(without - log_rest, floor)
        g = torch.where(usable, g, floor)
    else:
        g = torch.maximum(n, floor)
    losses = rows.sum(weights * _against(rows, g))
    return torch.where(rows.has_negative, losses, losses * 0)  # 0, or NaN where a positive is


def _logs(prior: float, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """log(prior) and log(1 - prior), of a symbol as 0-d tensors in float64."""
    made = as_operand(prior, like.new_empty((), dtype=torch.float64))
    if isinstance(made, Tensor):
        return made.log(), torch.log1p(-made)
    return math.log(made), math.log1p(-made)


def _logsumexp(rows: Rows, weights: object) -> Tensor:
    """Log-sum-exp of the whole row: negatives, positives, and what is neither."""
    everything = add_log(rows.neg_lse, rows.logsumexp(rows.positives))
    return everything if rows.excluded_lse is None else add_log(everything, rows.excluded_lse)


def _soft(rows: Rows, weights: object) -> Tensor:
    """Cross-entropy against the teacher's row (MXM-CLR, arXiv 2303.10839, eq. 8)."""
    assert rows.teacher_mean is not None
    return _logsumexp(rows, weights) - rows.teacher_mean


def _against(rows: Rows, n: Tensor) -> Tensor:
    """(L,) softplus(n_i - S_ik)."""
    # softplus multiplies the upstream gradient by an exponential up to exp(threshold) in backward.
    return -logsigmoid(rows.positives - rows.spread(n))


def _over_mean(rows: Rows, weights: Tensor, mean: Tensor) -> Tensor:
    """(R,) sum_k w_ik (S_ik - mean_i)."""
    return rows.sum(weights * (rows.positives - rows.spread(mean)))


def _over_negatives(rows: Rows, weights: Tensor) -> Tensor:
    """The positives less the mean of the negatives; 0 without one."""
    return _over_mean_of_negatives(rows, weights) * rows.num_negatives.clamp(max=1)


def _over_one_and_negatives(rows: Rows, weights: Tensor) -> Tensor:
    """Each positive less the mean of itself and the negatives."""
    share = rows.num_negatives / (rows.num_negatives + 1)
    return _over_mean_of_negatives(rows, weights) * share


def _over_mean_of_negatives(rows: Rows, weights: Tensor) -> Tensor:
    """The positives less the mean of the negatives, or less 0 without one."""
    assert rows.neg_sum is not None
    return _over_mean(rows, weights, rows.neg_sum / rows.num_negatives.clamp(min=1))


def _over_all(rows: Rows, weights: Tensor) -> Tensor:
    """The positives less the mean of the row."""
    return _over_mean(rows, weights, _mean_of_all(rows))


def _sum_over_all(rows: Rows, weights: object) -> Tensor:
    """The log-sum-exp of the positives less the mean of the row; 0 without a positive."""
    excess = rows.logsumexp(rows.positives) - _mean_of_all(rows)
    return excess.masked_fill(~rows.has_positive, 0)


def _mean_of_all(rows: Rows) -> Tensor:
    """(R,) mean of S over the negatives and the positives of each row, 0 without any."""
    assert rows.neg_sum is not None
    columns = (rows.num_negatives + rows.counts).clamp(min=1)
    return (rows.neg_sum + rows.sum(rows.positives)) / columns


info_nce = Formula("info_nce", _info_nce, _over_one_and_negatives)
supcon_out = Formula("supcon_out", _supcon_out, _over_all)
supcon_in = Formula("supcon_in", _supcon_in, _sum_over_all, weighs=False)
decoupled = Formula("decoupled", _decoupled, _over_negatives)
logsumexp = Formula("logsumexp", _logsumexp, weighs=False, of_every_row=True)
soft = Formula("soft", _soft, weighs=False, of_every_row=True)


def debiased(prior: float) -> Formula:
    """The debiased loss for one prior, in [0, 1)."""
    return Formula(
        "debiased",
        _debiased,
        _over_one_and_negatives,
        prior,
        parameter="logit_scale",
        reads_negatives=True,
    )
