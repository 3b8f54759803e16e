"""The row operators in plain PyTorch, any device and dtype: their definition and fallback."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mxm_kernels.backends.problem import (
    Draw,
    Form,
    FormName,
    Problem,
    RowLosses,
    RowProblem,
    Shares,
    Sides,
    Statistics,
    Upstream,
)
from mxm_kernels.segments import Segments, segment_max, segment_sum


def mixed_rows(p: RowProblem, form: Form, hard: float, soft: float, columns: int) -> RowLosses:
    """Losses of the rows, a loss of the positives and the soft loss, and their derivatives.

        l_i = a h_i + b (lse_i - u_i)        lse_i = logaddexp(n_i, p_i), p_i = logsumexp_k S_ik

    with a, b = ``hard``, ``soft``, for each row times its own weight where there are such, and, by
    ``form``,

        none        h_i = 0
        masked      h_i = sum_k w_ik softplus(n_i - S_ik)
        unmasked    h_i = sum_k w_ik (lse_i - S_ik)
        decoupled   h_i = sum_k w_ik (n_i - S_ik), 0 without a negative
        joint       h_i = softplus(n_i - p_i), 0 without a positive
        whole       h_i = lse_i
        debiased    h_i = sum_k w_ik softplus(g_i - S_ik), 0 without a negative

    where g_i is what n_i is without the positives expected among the negatives, with tau =
    its prior and |Neg| = ``columns`` - |Pos|,

        g_i = max(n_i + log(1 - r_i) - log(1 - tau), log |Neg| - s)
        r_i = tau |Neg| / |Pos| exp(p_i - n_i)

    They are NaN where S of a positive is infinite, or n is -inf in a row that has no positive:
    a feature is not finite, and its row may have dropped out of every other sum.
    """
    counts = p.offsets.diff()
    rows = torch.arange(len(p.n), device=p.n.device)
    owners = rows.repeat_interleave(counts, output_size=len(p.S))
    segments = Segments(p.offsets, owners)
    p = p._replace(S=torch.where(p.S.isinf(), torch.nan, p.S))
    a, b = _of_rows(hard, p.hard_weights), _of_rows(soft, p.soft_weights)
    if form.name in ("masked", "decoupled"):
        out = _weighted(p, p.n, form.name, a, segments)
    else:
        out = RowLosses(*(torch.zeros_like(v) for v in (p.n, p.n, p.S)))
    if soft or form.name not in ("none", "masked", "decoupled"):
        positives = _positives(p, segments)
        if form.name == "debiased":
            out = _debiased(p, positives, a, columns, form.prior, segments)
        if soft or form.name != "debiased":
            out = _with_whole(out, p, positives, form.name, a, b, segments)
    # Infinity times 0 is NaN.
    alone = p.n.masked_fill(counts > 0, 0)
    return out._replace(losses=torch.add(out.losses, alone, alpha=0))


Share = float | Tensor  # of every row, or (rows,) of each


def _of_rows(share: float, weights: Tensor) -> Share:
    """A share, times the weights of the rows where there are such."""
    return share * weights if share and len(weights) else share


def _weighted(
    p: RowProblem, level: Tensor, form: FormName, hard: Share, segments: Segments
) -> RowLosses:
    """The forms that weigh each positive by itself; ``dn`` is the derivative by the level."""
    own = hard[segments.owners] if isinstance(hard, Tensor) else hard
    weights, margin = own * p.weights, level[segments.owners] - p.S
    if form == "masked":
        value, pull = softplus(margin, threshold=40), torch.sigmoid(margin)
    else:  # a row without a negative is decoupled from nothing
        lone = margin == -torch.inf
        value, pull = margin.masked_fill(lone, 0), (margin * 0 + 1).masked_fill(lone, 0)
    pulled = weights * pull
    return RowLosses(segment_sum(weights * value, segments), segment_sum(pulled, segments), -pulled)


def _debiased(
    p: RowProblem, all_of: _Positives, hard: Share, columns: int, prior: float, segments: Segments
) -> RowLosses:
    """Softplus against g; on its floor only the scale moves it."""
    counts = segments.offsets.diff()
    negatives = (columns - counts).to(p.n.dtype)
    share = prior * negatives / counts.clamp(min=1)
    taken = (share.log() - all_of.margin).exp()  # NaN without a negative
    level = p.n + torch.log1p(-taken) - math.log1p(-prior)
    lone = p.n == -torch.inf
    floor = (negatives.log() - p.scale).masked_fill(lone, -torch.inf)
    on_floor = (taken >= 1) | (level <= floor) | lone
    made = _weighted(p, torch.where(on_floor, floor, level), "masked", hard, segments)
    dn = (made.dn / (1 - taken)).masked_fill(on_floor, 0)
    by_p = (dn * taken).masked_fill(on_floor, 0)
    dS = made.dS - (by_p / all_of.total)[segments.owners] * all_of.of_S
    return RowLosses(made.losses, dn, dS, -made.dn.masked_fill(~on_floor, 0))


def _with_whole(
    out: RowLosses,
    p: RowProblem,
    positives: _Positives,
    form: FormName,
    hard: Share,
    soft: Share,
    segments: Segments,
) -> RowLosses:
    """What depends on the positives of a row as a whole, added: by lse, or by p alone."""
    losses, dn, dS, dscale = out
    by_lse = soft
    if form == "unmasked":
        made = _weighted(p, positives.lse, form, hard, segments)
        losses, dS, by_lse = losses + made.losses, dS + made.dS, soft + made.dn
    if form == "whole":
        losses, by_lse = losses + hard * positives.lse, soft + hard
    if isinstance(soft, Tensor):
        losses = torch.addcmul(losses, soft, positives.lse - p.u)
    elif soft:
        losses = torch.add(losses, positives.lse - p.u, alpha=soft)
    dn = dn + by_lse * torch.sigmoid(positives.margin)
    by_p = by_lse * torch.sigmoid(-positives.margin)
    if form == "joint":
        margin = torch.where(segments.offsets.diff() == 0, -torch.inf, positives.margin)
        pull = hard * torch.sigmoid(margin)
        losses, dn, by_p = losses + hard * softplus(margin, threshold=40), dn + pull, by_p - pull
    by_S = (by_p / positives.total)[segments.owners] * positives.of_S
    return RowLosses(losses, dn, dS + by_S, dscale)


class _Positives(NamedTuple):
    """What the positives of each row are together, beside its negatives."""

    lse: Tensor  # (rows,) log-sum-exp of the whole row
    margin: Tensor  # (rows,) n - p, inf without a positive
    of_S: Tensor  # (P,) exp of S against the greatest of its row
    total: Tensor  # (rows,) their sums


def _positives(p: RowProblem, segments: Segments) -> _Positives:
    """From sums relative to the greatest: what comes of a rounded log-sum-exp is off by it."""
    top = segment_max(p.S, segments)
    of_S = (p.S - top[segments.owners]).exp()
    total = segment_sum(of_S, segments)
    log = total.log()  # -inf without a positive, as is the greatest
    margin = (p.n - top) - log
    return _Positives(torch.logaddexp(p.n, top + log), margin, of_S, total)


def mixed_loss(
    problem: Problem,
    statistics: Statistics,
    sides: Sides,
    form: Form,
    shares: Shares,
) -> tuple[Tensor, Upstream, Tensor | None]:
    """The mixed loss of both directions, and its gradient by the statistics and the scale."""
    s, texts = statistics, sides.text_slots
    least = problem.scale
    if problem.teacher_scale is not None:
        least = torch.minimum(least, problem.teacher_scale)  # NaN if either is
    S = torch.where(least > 0, s.positives, torch.nan)
    first, second = both_sides(problem, s, (S, S[texts]), sides, shares)
    rows = mixed_rows(first.problem, form, *first.numbers)
    cols = mixed_rows(second.problem, form, *second.numbers)
    upstream = Upstream(
        rows.dn,
        cols.dn,
        (rows.dS + cols.dS[sides.slot_places])[None],
        soft_gradient(s.u_rows, sides.row_soft_weights, shares.soft_rows),
        soft_gradient(s.u_cols, sides.col_soft_weights, shares.soft_cols),
    )
    return rows.losses.sum() + cols.losses.sum(), upstream, scale_gradient(rows, cols)


def scale_gradient(rows: RowLosses, cols: RowLosses) -> Tensor | None:
    """() derivative by the scale, beside that by S, of both directions where the form has one."""
    if rows.dscale is None or cols.dscale is None:
        return None
    return rows.dscale.sum() + cols.dscale.sum()


class Side(NamedTuple):
    """One direction of a mixed loss."""

    problem: RowProblem
    numbers: tuple[float, float, int]  # hard and soft share, columns


def both_sides(
    problem: Problem, s: Statistics, positives: tuple[Tensor, Tensor], sides: Sides, shares: Shares
) -> tuple[Side, Side]:
    """Both directions, with the positives as each has them."""
    rows = RowProblem(
        *(s.n_rows, positives[0], s.u_rows, sides.row_weights, problem.image_offsets),
        *(sides.row_hard_weights, sides.row_soft_weights, problem.scale),
    )
    cols = RowProblem(
        *(s.n_cols, positives[1], s.u_cols, sides.col_weights, sides.text_offsets),
        *(sides.col_hard_weights, sides.col_soft_weights, problem.scale),
    )
    return (
        Side(rows, (shares.hard_rows, shares.soft_rows, len(problem.y))),
        Side(cols, (shares.hard_cols, shares.soft_cols, len(problem.x))),
    )


def soft_gradient(u: Tensor, weights: Tensor, soft: float) -> Tensor:
    """Gradient of the losses of the rows by u, which is empty without a teacher."""
    return weights * -soft if len(weights) and len(u) else torch.full_like(u, -soft)


# SplitMix64 (Steele, Lea and Flood 2014), whose k-th number is a function of seed and k alone.
GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned ``word``."""
    return word - (word >> 63 << 64)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """The bits of int64 ``z`` moved right, zeros behind them."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _numbers(seed: Tensor, length: int) -> Tensor:
    """Numbers 1 to ``length`` of a seed, as int64 with their bits."""
    z = torch.arange(1, length + 1, device=seed.device).mul_(_signed(GAMMA)).add_(seed)
    z = z.bitwise_xor_(_shifted(z, 30)).mul_(_signed(FIRST))
    z = z.bitwise_xor_(_shifted(z, 27)).mul_(_signed(SECOND))
    return z.bitwise_xor_(_shifted(z, 31))


def _chosen(draw: Draw) -> tuple[Tensor, Tensor]:
    """(R, M + N) places of rows, then of columns P further on, and (M + N,) how many there were.

    Rounds 2 q and 2 q + 1 of row i of all M + N take the lower and the upper half of number
    q (M + N) + i + 1 of the seed: half h chooses floor(h k / 2^32) of k, with a bias below k 2^-32.
    More rounds begin with the same ones. With no choice the place means nothing.
    """
    sides = draw.image_offsets, draw.text_offsets
    counts = torch.cat([offsets.diff() for offsets in sides])
    first = torch.cat([sides[0][:-1], sides[1][:-1] + draw.pairs])
    turns = (draw.rounds + 1) // 2
    numbers = _numbers(draw.seed, turns * len(counts)).view(turns, 1, -1)
    halves = torch.cat([numbers & 0xFFFFFFFF, _shifted(numbers, 32)], dim=1)
    halves = halves.view(2 * turns, -1)[: draw.rounds]
    return ((halves * counts) >> 32).add_(first), counts


def draw_places(draw: Draw) -> tuple[Tensor, Tensor]:
    """(R, M) and (R, N) the place in its segment that each round draws, -1 in an empty segment."""
    places, counts = _chosen(draw)
    places = torch.where(counts > 0, places, -1)
    rows, cols = places.tensor_split([len(draw.image_offsets) - 1], dim=1)
    return rows, torch.where(cols < 0, cols, cols - draw.pairs)


def drawn_weights(draw: Draw, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(P,) share of the rounds in which each positive was drawn, by rows and by columns."""
    places, counts = _chosen(draw)
    times = _times(places, counts > 0, 2 * draw.pairs).split(draw.pairs)
    return times[0].to(dtype) / draw.rounds, times[1].to(dtype) / draw.rounds


def frequencies(places: Tensor, pairs: int, dtype: torch.dtype) -> Tensor:
    """(rounds, rows) drawn places, -1 for none -> (P,) how often each was, over the rounds."""
    return _times(places.clamp(min=0), places >= 0, pairs).to(dtype) / places.shape[0]


def _times(places: Tensor, drew: Tensor, pairs: int) -> Tensor:
    """How often each place was drawn, where ``drew``.

    Counted in integers, whose additions commute: the same bits in any order.
    """
    counts = torch.zeros(pairs + 1, dtype=torch.int32, device=places.device)
    drew = drew.to(torch.int32).expand(places.shape)
    counts.scatter_add_(0, places.reshape(-1), drew.reshape(-1))
    return counts[:pairs]
