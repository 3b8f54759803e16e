"""The operator where rules tell of pairs: offsets of the logits, and pairs that are no negatives.

The rows' and the columns' negatives may differ, so each side has exponentials of its own, against a
normaliser that is n at the negatives and e at the removed pairs. Nothing is kept for backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mxm_kernels.backends.blocked.exponentials import Running, Term
from mxm_kernels.backends.blocked.plane import Tile, Workspace, tiles_of
from mxm_kernels.backends.interface import Needs, Problem, Statistics, Upstream
from mxm_kernels.backends.rules import add_offsets, removed, removed_by_ids, same_groups
from mxm_kernels.backends.tiles import GradientSum


class ToldTile(NamedTuple):
    """A tile with what the rules say of it."""

    tile: Tile
    S: Tensor  # (h, w) with its offsets
    T: Tensor | None  # (h, w) with its offsets, where T is summed
    same: Tensor  # (h, w) the groups are the same: no negatives
    removed: tuple[Tensor, Tensor]  # (h, w) for the image, for the text

    def sides(self) -> Iterator[tuple[int, slice, int, Tensor, Tensor]]:
        """Of either side: its number, rows, the dimension to sum over, removed, negatives."""
        spans = self.tile.rows, self.tile.cols
        for side, (span, out) in enumerate(zip(spans, self.removed, strict=True)):
            yield side, slice(*span), 1 - side, out, ~(out | self.same)


def told_tiles(p: Problem, work: Workspace) -> Iterator[ToldTile]:
    """The tiles of the plane."""
    for tile in tiles_of(p):
        S, T, spans = work.student(tile), None, (tile.rows, tile.cols)
        add_offsets(p, p.logit_offsets, S, *spans)
        same = same_groups(p, *spans)
        products = work.teacher_products(tile) if p.has_teacher else None
        out = removed(p, *spans, products, same)
        if products is not None and p.teacher_scale is not None:
            T = products.mul_(p.teacher_scale)
            add_offsets(p, p.teacher_offsets, T, *spans)
        yield ToldTile(tile, S, T, same, out)


def forward(p: Problem, work: Workspace, made: Statistics) -> Statistics:
    """The statistics, in the memory of ``made`` whose fields say which are wanted."""
    lengths, like = (len(p.x), len(p.y)), work.like
    n, e, t = ([Running(length, like) for length in lengths] for _ in range(3))
    top = [like.new_full((length,), -torch.inf) for length in lengths]
    total = [like.new_zeros(length, dtype=torch.float64) for length in lengths]
    count = [like.new_zeros(length) for length in lengths]
    positives = like.new_empty(p.pairs)
    for told in told_tiles(p, work):
        tile, S = told.tile, told.S
        scratch = work.take(2, tile)
        positives[tile.pairs] = S.view(-1)[tile.places]
        for side, rows, dim, out, negatives in told.sides():
            span = (rows.start, rows.stop)
            L = S.masked_fill(~negatives, -torch.inf)
            n[side].add(span, L, dim, None, scratch)
            torch.maximum(top[side][rows], L.amax(dim), out=top[side][rows])
            total[side][rows] += S.masked_fill(~negatives, 0).sum(dim)
            count[side][rows] += negatives.sum(dim)
            if len(made.excluded_lse):
                e[side].add(span, S.masked_fill(~out, -torch.inf), dim, None, scratch)
            if told.T is not None:
                t[side].add(span, told.T, dim, S, scratch, entropy=len(made.entropy) > 0)
    found = {
        "neg_lse": torch.cat([side.logsumexp() for side in n]),
        "positives": p.to_list(positives),
        "teacher_mean": torch.cat([side.average() for side in t]),
        "neg_sum": torch.cat(total).to(like.dtype),
        "excluded_lse": torch.cat([side.logsumexp() for side in e]),
        "teacher_lse": torch.cat([side.logsumexp() for side in t]),
        "hardest": torch.cat(top),
        "entropy": torch.cat([side.entropy() for side in t]),
        "num_negatives": torch.cat(count),
    }
    wanted = {name: value for name, value in found.items() if getattr(made, name).numel()}
    return made._replace(**wanted).checked(p)


def backward(
    p: Problem, work: Workspace, s: Statistics, d: Upstream, sums: GradientSum, needs: Needs
) -> tuple[Tensor, Tensor | None]:
    """Add the products of dS to ``sums``; the sum of dS (S - b), (), and the sums of dS, (R,)."""
    positives = p.from_list(d.positives)
    of_T = Term.of(*p.halves(s.teacher_lse), *p.halves(d.teacher_mean))
    dscale = p.scale.new_zeros((), dtype=torch.float64)
    doffsets = OffsetSum(p, needs)
    for told in told_tiles(p, work):
        tile, S, spans = told.tile, told.S, (told.tile.rows, told.tile.cols)
        dS = work.take(2, tile).zero_()
        if told.T is not None:
            of_T.add(*spans, told.T, dS, work.take(3, tile), fresh=True)
        for side, rows, dim, out, negatives in told.sides():
            dS += _side_gradient(p, s, d, side, rows, dim, S, out, negatives)
        flat = dS.view(-1)
        flat[tile.places] += positives[tile.pairs]
        doffsets.add(dS, tile)
        if needs.scale:
            dscale += without_offsets(p, S, tile).mul_(dS).sum()
        sums.add(dS, *spans)
    return dscale, doffsets.total


def _side_gradient(
    p: Problem, s: Statistics, d: Upstream, side: int, rows: slice, dim: int, S: Tensor,
    out: Tensor, negatives: Tensor,
) -> Tensor:  # fmt: skip
    """(h, w) the part of dS by the statistics of one side."""

    def of_side(numbers: Tensor) -> Tensor:
        return p.halves(numbers)[side][rows].unsqueeze(dim)

    normaliser, factor, counted = of_side(s.neg_lse), of_side(d.neg_lse), negatives
    if len(s.excluded_lse):
        normaliser = torch.where(out, of_side(s.excluded_lse), normaliser)
        factor, counted = torch.where(out, of_side(d.excluded_lse), factor), out | negatives
    # No logit is above its normaliser, but for rounding.
    part = torch.sub(S, normaliser).clamp_(max=0).exp_().mul_(factor).masked_fill_(~counted, 0)
    if len(d.neg_sum):
        part += of_side(d.neg_sum).masked_fill(~negatives, 0)
    return part


class OffsetSum:
    """The gradient of the offsets: the sums (R,) of the rows of dS and of its columns."""

    def __init__(self, p: Problem, needs: Needs) -> None:
        sizes = (len(p.x), len(p.y)) if needs.logit_offsets else ()
        self.sides = [p.scale.new_zeros(size, dtype=torch.float64) for size in sizes]

    def add(self, dS: Tensor, tile: Tile) -> None:
        """Add a tile (h, w) of dS."""
        for total, span, dim in zip(self.sides, (tile.rows, tile.cols), (1, 0), strict=False):
            total[slice(*span)] += dS.sum(dim)

    @property
    def total(self) -> Tensor | None:
        """(R,) images first; None where it is not wanted."""
        return torch.cat(self.sides) if self.sides else None


def sigmoid_tile(p: Problem, work: Workspace, tile: Tile) -> tuple[Tensor, Tensor | None]:
    """(h, w) S of a tile with its offsets; (h, w) which of its pairs are removed, or None."""
    S, spans = work.student(tile), (tile.rows, tile.cols)
    add_offsets(p, p.logit_offsets, S, *spans)
    by_ids = removed_by_ids(p, *spans)
    return S, None if by_ids is None else by_ids & ~same_groups(p, *spans)


def without_offsets(p: Problem, S: Tensor, tile: Tile) -> Tensor:
    """S of a tile (h, w) less its offsets, in place."""
    add_offsets(p, None if p.logit_offsets is None else -p.logit_offsets, S, tile.rows, tile.cols)
    return S
