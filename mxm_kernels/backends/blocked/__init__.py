"""The operator in plain PyTorch, tile by tile: any device, any dtype, float64 included.

The readable definition of the algorithm, and the fallback everywhere. It holds three tiles
(four for diagnostics) of at most 8 MiB and the statistics, whatever M and N are, and S and T
between forward and backward where the memory budget has room for them. 16-bit features are widened
tile by tile, so products accumulate in float32. On a GPU it waits for the device (the pairs of a
tile are looked up on the host); the Triton backend never does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from mxm_kernels.backends.base import Backend
from mxm_kernels.backends.blocked import told
from mxm_kernels.backends.blocked.exponentials import Running, Term, add_both
from mxm_kernels.backends.blocked.plane import (
    Kept,
    Tile,
    Workspace,
    kept_stride,
    prepare_kept,
    tiles_of,
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
from mxm_kernels.backends.tiles import GradientSum
from mxm_kernels.backends.units import largest_of, multiply, unit_of


class _Blocked(Backend):
    """The backend: see the module's docstring."""

    def kept_stride(self, problem: Problem, memory: Memory) -> int | None:
        return kept_stride(problem, memory)

    def forward(
        self, problem: Problem, memory: Memory, diagnostics: bool = False, neg_sum: bool = False
    ) -> Statistics:
        problem = problem.with_valid_scales()
        work = Workspace(problem, memory)
        if problem.told:
            return told.forward(problem, work, problem.allocate(diagnostics, neg_sum))
        rows, cols = problem.x.shape[0], problem.y.shape[0]
        like = work.like
        S_rows, S_cols = Running(rows, like), Running(cols, like)
        T_rows, T_cols = Running(rows, like), Running(cols, like)
        maxima = [like.new_full((n,), -torch.inf) for n in (rows, cols)] if diagnostics else []
        sums = [like.new_zeros(n, dtype=torch.float64) for n in (rows, cols)] if neg_sum else []
        positives = like.new_empty(problem.pairs)
        made = problem.allocate(diagnostics, stride=kept_stride(problem, memory))
        prepare_kept(problem, made)
        kept = Kept(problem, made)
        for tile in tiles_of(problem):
            S, scratch = work.student(tile, kept.place(0, tile)), work.take(2, tile)
            kept.store(0, tile, S, scratch)
            if problem.has_teacher:
                T = work.teacher(tile, kept.place(1, tile))
                kept.store(1, tile, T, scratch)
                add_both((T_rows, T_cols), tile.rows, tile.cols, T, S, scratch, entropy=diagnostics)
            flat = S.view(-1)
            positives[tile.pairs] = flat[tile.places]
            hidden = flat[tile.hidden] if kept else None
            if neg_sum:
                flat[tile.hidden] = 0
                sums[0][slice(*tile.rows)] += S.sum(1)
                sums[1][slice(*tile.cols)] += S.sum(0)
            flat[tile.hidden] = -torch.inf
            for m, span, dim in zip(maxima, (tile.rows, tile.cols), (1, 0), strict=False):
                part = m[slice(*span)]
                torch.maximum(part, S.amax(dim), out=part)
            add_both((S_rows, S_cols), tile.rows, tile.cols, S, None, scratch)
            if hidden is not None:
                flat[tile.hidden] = hidden
        made = made._replace(
            neg_lse=torch.cat([S_rows.logsumexp(), S_cols.logsumexp()]),
            positives=problem.to_list(positives),
        )
        if diagnostics:
            made = made._replace(hardest=torch.cat(maxima))
        if neg_sum:
            made = made._replace(neg_sum=torch.cat(sums).to(like.dtype))
        if problem.has_teacher:
            made = made._replace(
                teacher_mean=torch.cat([T_rows.average(), T_cols.average()]),
                teacher_lse=torch.cat([T_rows.logsumexp(), T_cols.logsumexp()]),
            )
            if diagnostics:
                made = made._replace(entropy=torch.cat([T_rows.entropy(), T_cols.entropy()]))
        return made.checked(problem)

    def backward(
        self,
        problem: Problem,
        statistics: Statistics,
        upstream: Upstream,
        needs: Needs,
        memory: Memory,
    ) -> Gradients:
        # The sums get the scale, dS does not: in dS S its square may be below float32's numbers.
        d, unit = _bounded(problem, upstream)
        work = Workspace(problem, memory)
        sums = GradientSum(problem, needs, _by_scale(problem, unit))
        if problem.told:
            problem = problem.with_valid_scales()
            return _finished(
                problem, sums, unit, *told.backward(problem, work, statistics, d, sums, needs)
            )
        positives = problem.from_list(d.positives)
        of_S = Term.of(*problem.halves(statistics.neg_lse), *problem.halves(d.neg_lse))
        of_T = Term.of(*problem.halves(statistics.teacher_lse), *problem.halves(d.teacher_mean))
        dscale = problem.scale.new_zeros((), dtype=torch.float64)
        kept = Kept(problem, statistics)
        for tile in tiles_of(problem):
            spans, dS, scratch = (tile.rows, tile.cols), work.take(2, tile), work.take(1, tile)
            if problem.has_teacher:
                other = work.take(0, tile)  # T may be in the scratch
                T = kept.load(1, tile, scratch) if kept else work.teacher(tile)
                of_T.add(*spans, T, dS, other, fresh=True)
            S = kept.load(0, tile, work.take(0, tile)) if kept else work.student(tile)
            of_S.add(*spans, S, dS, scratch, fresh=not problem.has_teacher, left_out=tile.hidden)
            if len(d.neg_sum):
                _add_sums(problem, d.neg_sum, tile, dS, scratch)
            flat = dS.view(-1)
            flat[tile.places] += positives[tile.pairs]
            if needs.scale:
                dscale += _dot(S, dS, scratch)
            sums.add(dS, tile.rows, tile.cols)
        return _finished(problem, sums, unit, dscale)

    def sigmoid_forward(self, problem: Problem, bias: Tensor, memory: Memory) -> SigmoidStatistics:
        problem = problem.with_valid_scales()
        work = Workspace(problem, memory)
        r_rows, r_cols = (work.like.new_zeros(len(f)) for f in (problem.x, problem.y))
        positives = work.like.new_empty(problem.pairs)
        zero = work.like.new_zeros(())
        for tile in tiles_of(problem):
            S, removed = told.sigmoid_tile(problem, work, tile)
            flat = S.view(-1)
            positives[tile.pairs] = flat[tile.places]
            flat[tile.hidden] = -torch.inf
            if removed is not None:
                S.masked_fill_(removed, -torch.inf)
            terms = torch.logaddexp(S.add_(bias), zero, out=work.take(2, tile))  # softplus
            r_rows[slice(*tile.rows)] += terms.sum(1)
            r_cols[slice(*tile.cols)] += terms.sum(0)
        return SigmoidStatistics(torch.cat([r_rows, r_cols]), problem.to_list(positives))

    def sigmoid_backward(
        self,
        problem: Problem,
        bias: Tensor,
        positives: Tensor,
        upstream: SigmoidStatistics,
        needs: Needs,
        memory: Memory,
    ) -> SigmoidGradients:
        problem = problem.with_valid_scales()
        d, unit = _bounded(problem, upstream)
        d_rows, d_cols = problem.halves(d.softplus_sum)
        d_positives = problem.from_list(d.positives)
        work = Workspace(problem, memory)
        sums = GradientSum(problem, needs, _by_scale(problem, unit))  # as in backward
        dscale, dbias = problem.scale.new_zeros(2, dtype=torch.float64)
        doffsets = told.OffsetSum(problem, needs)
        for tile in tiles_of(problem):
            S, removed = told.sigmoid_tile(problem, work, tile)
            dS = torch.add(S, bias, out=work.take(2, tile)).sigmoid_()
            rows, cols = d_rows[slice(*tile.rows), None], d_cols[slice(*tile.cols)]
            dS *= torch.add(rows, cols, out=work.take(1, tile))
            flat = dS.view(-1)
            flat[tile.hidden] = 0
            if removed is not None:
                dS.masked_fill_(removed, 0)
            dbias += flat.sum()
            flat[tile.places] = d_positives[tile.pairs]
            doffsets.add(dS, tile)
            if needs.scale:
                dscale += _dot(told.without_offsets(problem, S, tile), dS, S)
            sums.add(dS, tile.rows, tile.cols)
        made = _finished(problem, sums, unit, dscale, doffsets.total)
        return SigmoidGradients(*made[:3], (dbias / unit).to(bias.dtype), made.logit_offsets)

    def sigmoid_loss(
        self, problem: Problem, bias: Tensor, weights: SigmoidWeights, needs: Needs, memory: Memory
    ) -> SigmoidLoss:
        problem = problem.with_valid_scales()
        work = Workspace(problem, memory)
        by_scale = _by_scale(problem, 1.0)
        sums = GradientSum(problem, needs, by_scale, dtype=problem.gradient_dtype)
        zero = work.like.new_zeros(())
        row_weights, col_weights = problem.halves(weights.rows)
        pair_weights = weights.pairs
        if not len(pair_weights):
            pair_weights = row_weights[problem.pair_images] + col_weights[problem.pair_texts]
        loss, dscale, dbias = problem.scale.new_zeros(3, dtype=torch.float64)
        doffsets = told.OffsetSum(problem, needs)
        for tile in tiles_of(problem):
            rows, cols = row_weights[slice(*tile.rows)], col_weights[slice(*tile.cols)]
            (S, removed), weight = told.sigmoid_tile(problem, work, tile), pair_weights[tile.pairs]
            margins = bias + S.view(-1)[tile.places]
            logits = torch.add(S, bias, out=work.take(1, tile))
            logits.view(-1)[tile.places] = -torch.inf
            if removed is not None:
                logits.masked_fill_(removed, -torch.inf)
            dS = torch.sigmoid(logits, out=work.take(2, tile))
            terms = torch.logaddexp(logits, zero, out=logits)  # softplus
            loss += rows @ terms.sum(1) + cols @ terms.sum(0)
            loss += weight @ torch.logaddexp(-margins, zero)
            dS *= torch.add(rows[:, None], cols, out=terms)
            flat = dS.view(-1)
            flat[tile.places] = -weight * torch.sigmoid(-margins)
            dbias += flat.sum()
            doffsets.add(dS, tile)
            dscale += _dot(told.without_offsets(problem, S, tile), dS, S)
            sums.add(dS, tile.rows, tile.cols)
        dscale /= problem.scale
        gradients = _finished(problem, sums, 1.0, dscale, doffsets.total)
        # What is not finite among the features may vanish from the loss, but not from dS S.
        return SigmoidLoss(
            (loss + 0 * dscale).to(bias.dtype),
            gradients.x,
            gradients.y,
            torch.stack([dscale, dbias]).to(bias.dtype),
            gradients.logit_offsets,
        )


def _finished(
    problem: Problem, sums: GradientSum, unit: float, dscale: Tensor, doffsets: Tensor | None = None
) -> Gradients:
    """The gradients from sums that carry the unit."""
    dtype = problem.scale.dtype
    if doffsets is not None:
        doffsets = (doffsets / unit).to(dtype)
    return sums.finish((dscale / unit / problem.scale).to(dtype), doffsets)


def _add_sums(problem: Problem, d: Tensor, tile: Tile, dS: Tensor, scratch: Tensor) -> None:
    """Add d_i + d_j, the gradients (R,) of the sums of S over the negatives, at those of a tile."""
    rows, cols = problem.halves(d)
    torch.add(rows[slice(*tile.rows), None], cols[slice(*tile.cols)], out=scratch)
    scratch.view(-1)[tile.hidden] = 0
    dS += scratch


_Upstream = TypeVar("_Upstream", Upstream, SigmoidStatistics)


def _bounded(problem: Problem, upstream: _Upstream) -> tuple[_Upstream, float]:
    """The upstream gradients times a unit; the unit."""
    unit = unit_of(largest_of(upstream), float(problem.scale), problem.accumulator)
    if unit == 1:
        return upstream, unit
    return type(upstream)(*(multiply(v.clone(), unit) for v in upstream)), unit


def _by_scale(problem: Problem, unit: float) -> Callable[[Tensor], Tensor]:
    """A function that multiplies sums over unit times dS by the scale over the unit."""
    return partial(multiply, factor=float(problem.scale) / unit)


def _dot(S: Tensor, dS: Tensor, scratch: Tensor) -> Tensor:
    """() sum of dS S.

    ``torch.dot`` adds up in a few lanes: over a million terms it was off by 1e-7 to 7e-7 of their
    size, this sum by less than 3e-8.
    """
    return torch.mul(S, dS, out=scratch).sum()


backend = _Blocked()
