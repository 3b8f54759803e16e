"""The row operators in plain PyTorch, any device and dtype: their definition and fallback."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mxm_kernels.algebra.segments import Segments, segment_max, segment_sum
from mxm_kernels.backends.problem import RowLosses, RowProblem


def mixed_rows(p: RowProblem, hard: float, soft: float) -> RowLosses:
    """Losses of the rows and their derivatives in n and S."""
    counts = p.offsets.diff()
    rows = torch.arange(len(p.n), device=p.n.device)
    owners = rows.repeat_interleave(counts, output_size=len(p.S))
    segments = Segments(p.offsets, owners)
    margin = p.n[owners] - p.S
    losses = hard * segment_sum(p.weights * softplus(margin, threshold=40), segments)
    pull = hard * p.weights * torch.sigmoid(margin)
    dn, dS = segment_sum(pull, segments), -pull
    if soft:
        top = torch.maximum(p.n, segment_max(p.S, segments))
        # Shares from sums relative to `top`: those from the rounded logarithm are off by it.
        of_n, of_S = (p.n - top).exp(), (p.S - top[owners]).exp()
        total = of_n + segment_sum(of_S, segments)
        losses = losses + soft * (top + total.log() - p.u)
        dn = dn + soft * of_n / total
        dS = dS + soft * of_S / total[owners]
    return RowLosses(losses, dn, dS)


def drawn_weights(random: Tensor, offsets: Tensor, pairs: int, dtype: torch.dtype) -> Tensor:
    """(P,) share of the rounds in which each positive was drawn.

    Counted in integers, whose additions commute: the same bits in any order.
    """
    counts = offsets.diff()
    lanes = (random.long() * counts) >> 31
    drawn = torch.where(counts > 0, offsets[:-1] + lanes, pairs).view(-1)
    total = torch.zeros(pairs + 1, dtype=torch.int32, device=offsets.device)
    total.scatter_add_(0, drawn, torch.ones_like(drawn, dtype=torch.int32))
    return total[:pairs].to(dtype) / random.shape[0]
