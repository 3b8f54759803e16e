"""The row operators in plain PyTorch, any device and dtype: their definition and fallback."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mxm_kernels.backends.problem import (
    Draw,
    Problem,
    RowLosses,
    RowProblem,
    Shares,
    Sides,
    Statistics,
    Upstream,
)
from mxm_kernels.segments import Segments, segment_max, segment_sum


def mixed_rows(p: RowProblem, hard: float, soft: float) -> RowLosses:
    """Losses of the rows and their derivatives in n and S.

    They are NaN where S of a positive is infinite, or n is -inf in a row that has no positive:
    a feature is not finite, and its row may have dropped out of every other sum.
    """
    counts = p.offsets.diff()
    rows = torch.arange(len(p.n), device=p.n.device)
    owners = rows.repeat_interleave(counts, output_size=len(p.S))
    segments = Segments(p.offsets, owners)
    p = p._replace(S=torch.where(p.S.isinf(), torch.nan, p.S))
    margin = p.n[owners] - p.S
    losses = hard * segment_sum(p.weights * softplus(margin, threshold=40), segments)
    losses = losses + torch.where(counts == 0, p.n * 0, 0)  # infinity times 0 is NaN
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


def mixed_loss(
    problem: Problem, statistics: Statistics, sides: Sides, shares: Shares
) -> tuple[Tensor, Upstream]:
    """MFH of both directions, and its gradient by the statistics."""
    s, texts = statistics, sides.text_slots
    positive = problem.scale > 0
    if problem.teacher_scale is not None:
        positive = positive & (problem.teacher_scale > 0)
    S = torch.where(positive, s.positives, torch.nan)
    rows = mixed_rows(
        RowProblem(s.n_rows, S, s.u_rows, sides.row_weights, problem.image_offsets),
        shares.hard_rows,
        shares.soft_rows,
    )
    cols = mixed_rows(
        RowProblem(s.n_cols, S[texts], s.u_cols, sides.col_weights, sides.text_offsets),
        shares.hard_cols,
        shares.soft_cols,
    )
    return rows.losses.sum() + cols.losses.sum(), Upstream(
        rows.dn,
        cols.dn,
        (rows.dS + cols.dS[sides.slot_places])[None],
        torch.full_like(s.u_rows, -shares.soft_rows),
        torch.full_like(s.u_cols, -shares.soft_cols),
    )


def places_of(random: Tensor, offsets: Tensor) -> Tensor:
    """(rounds, rows) the place in its segment that each number draws, -1 for an empty segment.

    ``random`` is int32, uniform in [0, 2^31): one of k is drawn with a bias below k * 2**-31.
    """
    counts = offsets.diff()
    return torch.where(counts > 0, offsets[:-1] + ((random.long() * counts) >> 31), -1)


def frequencies(places: Tensor, pairs: int, dtype: torch.dtype) -> Tensor:
    """(rounds, rows) drawn places -> (P,) how often each was drawn, over the rounds.

    Counted in integers, whose additions commute: the same bits in any order.
    """
    drawn = torch.where(places < 0, pairs, places).view(-1)
    counts = torch.zeros(pairs + 1, dtype=torch.int32, device=places.device)
    counts.scatter_add_(0, drawn, torch.ones_like(drawn, dtype=torch.int32))
    return counts[:pairs].to(dtype) / places.shape[0]


def drawn_weights(draw: Draw, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(P,) share of the rounds in which each positive was drawn, by rows and by columns."""
    rows, cols = (frequencies(places_of(*side), draw.pairs, dtype) for side in draw.sides())
    return rows, cols
