"""The operator over the shards of several ranks: the statistics of the whole batch.

Rank r has M_r image rows and N_r text rows. It computes its images against all texts, so its
rows of S are whole and its columns are the part over its images. Symbols as in
``backends/problem.py``, with a superscript for a rank's part:

    forward     gather y (and the teacher's Y), run the operator on (x^r, y)
                send the parts of column j, and S of its positive pairs, to the rank of text j
                n_j = logsumexp_r n_j^r      t_j = logsumexp_r t_j^r
                u_j = sum_r exp(t_j^r - t_j) u_j^r
    backward    send back dn_j^r = dn_j exp(n_j^r - n_j), du_j^r = du_j exp(t_j^r - t_j), dS_pos
                run the operator's backward: dx^r, ds^r and a part of dy
                send the parts of dy to the ranks of their rows, which add them up in rank order

What a rank returns is about its own rows and columns, and complete, so the losses are those of
one process. Only their means are summed over the ranks, by an all-reduce whose gradient is
summed too: every rank's gradient is W times its part of the gradient of the loss, and an engine
that averages over W ranks, as DDP and FSDP do, gets the gradient of one process.

A rank sends in a step, in bytes, with W ranks, N texts (padded to W times the longest shard), e
bytes for a feature, and k = 2 numbers for a column without a teacher, 3 with one:

    features        (W - 1) / W N (D + D') e        all-gather, D' with a teacher
    gradients       (W - 1) / W N D e               all-to-all, summed in float32
    columns, pairs  O(N k + pairs that straddle ranks) 4 bytes, each way
    ids             (W - 1) (M_r + N_r) 8 bytes

:func:`bytes_sent` has the exact number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mxm_kernels.backends.problem import SigmoidStatistics, Upstream
from mxm_kernels.direction import Direction
from mxm_kernels.distributed import Ranks, bounds
from mxm_kernels.fold_tables import FoldTables, RowTables, tables_from_ids, tables_without_pairs
from mxm_kernels.operator import statistics, statistics_backward
from mxm_kernels.segments import Segments
from mxm_kernels.sigmoid_operator import sigmoid_statistics, sigmoid_statistics_backward


@dataclass(frozen=True, eq=False)
class Shard:
    """This rank's part of a batch: which rows and pairs, and who has the others."""

    ranks: Ranks
    images: tuple[int, ...]  # image rows of each rank
    texts: tuple[int, ...]
    tables: FoldTables  # of the whole batch
    row_tables: RowTables  # own images against all texts
    columns: Segments  # positives of the own texts, text after text
    pairs: tuple[slice, slice]  # own pairs among those of the batch: of the rows, of the columns
    send: tuple[int, ...]  # pairs of own images with a text of each rank
    receive: tuple[int, ...]  # pairs of own texts with an image of each rank
    order: Tensor  # (P_r,) slots of the own images' pairs, by the rank of their text
    places: Tensor  # (P'_r,) where each pair of the own texts is among those that came

    @classmethod
    def of(
        cls,
        ranks: Ranks,
        images: tuple[int, ...],
        texts: tuple[int, ...],
        ids: tuple[Tensor, Tensor] | None,
        device: torch.device,
    ) -> Shard:
        """Gather the ids of this rank's rows, (M_r,) and (N_r,), and find all pairs.

        Without ids no pair is positive.
        """
        tables = tables_without_pairs(sum(images), sum(texts), device)
        if ids is not None:
            tables = tables_from_ids(*_gather_ids(ranks, images, texts, ids))
        rows, cols = bounds(images, ranks.rank), bounds(texts, ranks.rank)
        own, row_pairs = tables.rows(rows)
        columns, column_pairs = tables.columns(cols)
        slots = tables.text_slots[column_pairs]
        text_ranks = _owners(own.pair_texts, texts)
        image_ranks = _owners(tables.pair_images[slots], images)
        sizes = torch.stack([_count(text_ranks, ranks.world), _count(image_ranks, ranks.world)])
        send, receive = sizes.tolist()
        # Pairs travel sorted by image, then text, which is the order of slots.
        places = torch.empty_like(slots)
        places[slots.argsort()] = torch.arange(len(slots), device=slots.device)
        return cls(
            ranks,
            images,
            texts,
            tables,
            own,
            Segments(*columns),
            (row_pairs, column_pairs),
            tuple(send),
            tuple(receive),
            text_ranks.argsort(stable=True),
            places,
        )

    @property
    def first_image(self) -> int:
        """Which row of the batch this rank's first image is."""
        return bounds(self.images, self.ranks.rank).start

    @property
    def segments(self) -> tuple[Segments, Segments]:
        """The positive pairs of the own images, and of the own texts."""
        return Segments(self.row_tables.image_offsets, self.row_tables.pair_images), self.columns

    def own_rows(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """(M,), (N,) -> (M_r,), (N_r,): the entries of this rank's rows."""
        rank = self.ranks.rank
        return images[bounds(self.images, rank)], texts[bounds(self.texts, rank)]

    def own_pairs(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """(P,) in slot order, (P,) in text-major order -> those of this rank's rows."""
        return images[self.pairs[0]], texts[self.pairs[1]]

    def directions(
        self,
        x: Tensor,
        y: Tensor,
        teacher: tuple[Tensor, Tensor] | None,
        scale: Tensor,
        teacher_scale: Tensor | None,
        backend: str,
        diagnostics: bool,
    ) -> tuple[Direction, Direction]:
        """Both directions of this rank's rows over the whole batch."""
        teacher_x, teacher_y = teacher if teacher is not None else (None, None)
        outputs = _ShardStatistics.apply(
            self, backend, diagnostics, x, y, scale, teacher_x, teacher_y, teacher_scale
        )
        n, S, u, t, m, h, n_cols, S_cols, u_cols, t_cols, m_cols, h_cols = outputs
        tables, segments = self.tables, self.segments
        return (
            Direction(
                n=n,
                S=S,
                u=u,
                t=t,
                segments=segments[0],
                scale=scale,
                columns=tables.texts,
                with_positive=tables.images_with_positive,
                m=m,
                h=h,
            ),
            Direction(
                n=n_cols,
                S=S_cols,
                u=u_cols,
                t=t_cols,
                segments=segments[1],
                scale=scale,
                columns=tables.images,
                with_positive=tables.texts_with_positive,
                m=m_cols,
                h=h_cols,
            ),
        )

    def to_columns(self, parts: Tensor) -> Tensor:
        """Parts of every column (N, k) -> those of the own columns, by rank (W, N_r, k)."""
        mine = self.texts[self.ranks.rank]
        came = self.ranks.exchange(parts, self.texts, (mine,) * self.ranks.world)
        return came.view(self.ranks.world, mine, *parts.shape[1:])

    def sum_columns(self, parts: Tensor, dtype: torch.dtype) -> Tensor:
        """Parts of every column (N, ...) -> the own columns (N_r, ...), added in ``dtype``."""
        return self.to_columns(parts).sum(0, dtype=dtype).to(parts.dtype)

    def from_columns(self, parts: Tensor) -> Tensor:
        """Its inverse: (W, N_r, k) -> (N, k)."""
        mine = self.texts[self.ranks.rank]
        return self.ranks.exchange(parts.flatten(0, 1), (mine,) * self.ranks.world, self.texts)

    def pairs_to_columns(self, pairs: Tensor) -> Tensor:
        """(P_r,) in slot order of the own images -> (P'_r,) text after text of the own texts."""
        return self.ranks.exchange(pairs[self.order], self.send, self.receive)[self.places]

    def pairs_from_columns(self, pairs: Tensor) -> Tensor:
        """Its inverse."""
        leaving = torch.empty_like(pairs)
        leaving[self.places] = pairs
        came = self.ranks.exchange(leaving, self.receive, self.send)
        back = torch.empty_like(came)
        back[self.order] = came
        return back


def _gather_ids(
    ranks: Ranks, images: tuple[int, ...], texts: tuple[int, ...], ids: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """(M,) and (N,) ids of all rows, in one collective."""
    both = tuple(m + n for m, n in zip(images, texts, strict=True))
    every = ranks.gather(torch.cat(ids), both).split(
        [size for pair in zip(images, texts, strict=True) for size in pair]
    )
    return torch.cat(every[::2]), torch.cat(every[1::2])


def _owners(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The rank of each of some rows of the whole batch."""
    ends = torch.tensor(counts, device=rows.device).cumsum(0)
    return torch.bucketize(rows, ends, right=True)


def _count(owners: Tensor, world: int) -> Tensor:
    counts = torch.zeros(world, dtype=torch.int64, device=owners.device)
    return counts.scatter_add_(0, owners, torch.ones_like(owners))


class _ShardStatistics(torch.autograd.Function):
    """The statistics of the own rows and columns, with all their communication.

    One function, so that every rank enters the collectives of its backward, in one order,
    whatever rows it has.
    """

    @staticmethod
    def forward(ctx, shard, backend, diagnostics, x, y, scale, teacher_x, teacher_y, t):
        ranks = shard.ranks
        every_y = ranks.gather(y, shard.texts)
        teacher = None
        if teacher_x is not None:
            teacher = teacher_x, ranks.gather(teacher_y, shard.texts)
        s = statistics(x, every_y, teacher, scale, t, shard.row_tables, backend, diagnostics)
        cols = [c for c in (s.n_cols, s.u_cols, s.t_cols, s.m_cols, s.h_cols) if c.numel()]
        parts = shard.to_columns(torch.stack(cols, -1))
        merged = _merge(parts, teacher is not None, diagnostics)
        S_cols = shard.pairs_to_columns(s.positives)
        features = x, every_y, scale, *(teacher or (None, None)), t
        ctx.save_for_backward(*features, *s[:7], parts, merged.n, merged.t)
        ctx.shard, ctx.backend = shard, backend
        rows = s.n_rows, s.positives, s.u_rows, s.t_rows, s.m_rows, s.h_rows
        outputs = (*rows, merged.n, S_cols, *merged[1:])
        ctx.mark_non_differentiable(*(outputs[k] for k in (3, 4, 5, 9, 10, 11)))
        ctx.set_materialize_grads(True)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, dn, dS, du, _t, _m, _h, dn_cols, dS_cols, du_cols, *_):
        shard = ctx.shard
        x, every_y, scale, teacher_x, teacher_y, t, *saved, parts, n, t_cols = ctx.saved_tensors
        down = [dn_cols * _shares(parts[..., 0], n)]
        if teacher_x is not None:
            down.append(du_cols * _shares(parts[..., 2], t_cols))
        every = shard.from_columns(torch.stack(down, -1))
        upstream = Upstream(
            dn,
            every[:, 0],
            dS + shard.pairs_from_columns(dS_cols),
            du,
            every[:, 1] if teacher_x is not None else du_cols.new_empty(0),
        )
        needs = list(ctx.needs_input_grad[3:6])
        teacher = None if teacher_x is None else (teacher_x, teacher_y)
        dx, dy, ds = statistics_backward(
            x, every_y, teacher, scale, t, shard.row_tables, saved, upstream, needs, ctx.backend
        )
        if needs[1]:
            dy = shard.sum_columns(dy, dn.dtype)
        grads = [g if need else None for g, need in zip((dx, dy, ds), needs, strict=True)]
        return (None, None, None, *grads, None, None, None)


class _Columns(NamedTuple):
    """Statistics of the own columns, (N_r,) each, or empty where they are not wanted."""

    n: Tensor
    u: Tensor
    t: Tensor
    m: Tensor
    h: Tensor


def _merge(parts: Tensor, teacher: bool, diagnostics: bool) -> _Columns:
    """Merge the ranks' parts (W, N_r, k)."""
    columns = list(parts.unbind(-1))
    n = columns.pop(0).logsumexp(0)
    u, t, m, h = (parts.new_empty(0) for _ in range(4))
    if teacher:
        u_parts, t_parts = columns.pop(0), columns.pop(0)
        t = t_parts.logsumexp(0)
        shares = _shares(t_parts, t)
        u = (shares * u_parts).sum(0)
    if diagnostics:
        m = columns.pop(0).amax(0)
        if teacher:
            # Entropy t - sum_i p_i T_i, and of a rank's part t^r - h^r = sum_i p_i^r T_i.
            mean = (t_parts - columns.pop(0)).masked_fill(t_parts == -torch.inf, 0)
            h = t - (shares * mean).sum(0)
    return _Columns(n, u, t, m, h)


def _shares(parts: Tensor, total: Tensor) -> Tensor:
    """exp(parts - total), 0 where there is nothing at all."""
    return (parts - total).exp().masked_fill(total == -torch.inf, 0)


def sigmoid_over_ranks(
    shard: Shard, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sigmoid operator over ranks: r and S_pos of the own rows, then of the own columns."""
    return _ShardSigmoid.apply(shard, backend, x, y, scale, bias)


class _ShardSigmoid(torch.autograd.Function):
    """Like :class:`_ShardStatistics`; the parts of a column are sums, and add up."""

    @staticmethod
    def forward(ctx, shard, backend, x, y, scale, bias):
        every_y = shard.ranks.gather(y, shard.texts)
        s = sigmoid_statistics(x, every_y, scale, bias, shard.row_tables, backend)
        r_cols = shard.sum_columns(s.r_cols, s.r_cols.dtype)
        S_cols = shard.pairs_to_columns(s.positives)
        ctx.save_for_backward(x, every_y, scale, bias, s.positives)
        ctx.shard, ctx.backend = shard, backend
        return s.r_rows, s.positives, r_cols, S_cols

    @staticmethod
    @once_differentiable
    def backward(ctx, dr, dS, dr_cols, dS_cols):
        shard = ctx.shard
        x, every_y, scale, bias, positives = ctx.saved_tensors
        every = shard.from_columns(dr_cols.expand(shard.ranks.world, -1))
        upstream = SigmoidStatistics(dr, every, dS + shard.pairs_from_columns(dS_cols))
        needs = list(ctx.needs_input_grad[2:6])
        dx, dy, ds, db = sigmoid_statistics_backward(
            x, every_y, scale, bias, shard.row_tables, positives, upstream, needs, ctx.backend
        )
        if needs[1]:
            dy = shard.sum_columns(dy, dr.dtype)
        grads = (g if need else None for g, need in zip((dx, dy, ds, db), needs, strict=True))
        return (None, None, *grads)
