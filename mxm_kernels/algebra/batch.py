"""From the arguments of a loss to a batch: everything checked, on one process or over ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from mxm_kernels import backends, checks
from mxm_kernels.algebra.agreement import facts_of
from mxm_kernels.algebra.autocast import autocast
from mxm_kernels.algebra.modes import out_of_inference, refuse_transforms
from mxm_kernels.algebra.queues import QueuedRows, check_queues
from mxm_kernels.algebra.row_options import check_rows
from mxm_kernels.algebra.selection import Weights
from mxm_kernels.fold_tables import FoldTables, tables_without_pairs
from mxm_kernels.folds import Folds, Ids
from mxm_kernels.options import FoldsLike, Resolved, Scale, row_vector
from mxm_kernels.parallel.distributed import Ranks, SharedErrors
from mxm_kernels.parallel.shards import Shard
from mxm_kernels.segments import Segments

_MaybeTensor = TypeVar("_MaybeTensor", Tensor, Tensor | None)


@dataclass(frozen=True, eq=False)
class Batch:
    """Features, scales and folds of one call, checked and on one device."""

    x: Tensor  # (M, D)
    y: Tensor  # (N, D)
    teacher: tuple[Tensor, Tensor] | None  # (M, D'), (N, D')
    scales: tuple[Tensor, Tensor]  # () both the same, or (M,) and (N,)
    teacher_scales: tuple[Tensor, Tensor]
    queues: tuple[QueuedRows | None, QueuedRows | None]  # what the images see, what the texts see
    tables: FoldTables  # of the rows of all ranks
    options: Resolved
    dtype: torch.dtype  # of the loss
    backend: str
    generator: torch.Generator | None  # source of every draw
    shard: Shard | None  # what this process has of the batch; None: all of it

    @property
    def one_scale(self) -> bool:
        """Whether S is one matrix for both directions."""
        return self.scales[0] is self.scales[1] and self.teacher_scales[0] is self.teacher_scales[1]

    @property
    def diagnosed(self) -> bool:
        """Whether the operator is to measure what diagnostics need."""
        return self.options.diagnostics is not None

    @property
    def rows(self) -> tuple[int, int]:
        """Image rows and text rows of all ranks."""
        return self.tables.images, self.tables.texts

    @property
    def segments(self) -> tuple[Segments, Segments]:
        """The positive pairs of this process's rows and of its columns."""
        t = self.tables
        if self.shard is not None:
            return self.shard.segments
        return (
            Segments(t.image_offsets, t.pair_images),
            Segments(t.text_offsets, t.text_owners),
        )

    def own_rows(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Of a value for every row of the batch, (M,) and (N,), those of this process."""
        return (images, texts) if self.shard is None else self.shard.own_rows(images, texts)

    def own_pairs(self, weights: Weights) -> Weights:
        """Of the weights of all positive pairs, those of this process's rows and columns."""
        return weights if self.shard is None else self.shard.own_pairs(*weights)

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the ranks of a value of this process's rows."""
        return value if self.shard is None else self.shard.ranks.sum(value)

    def with_soft(self, share: float | tuple[Tensor, Tensor]) -> Batch:
        """The same batch with another ``soft_weight``."""
        return replace(self, options=self.options._replace(soft_weight=share))


def make_batch(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None,
    logit_scale: Scale,
    options: Resolved,
    *,
    generator: torch.Generator | None = None,
    own: tuple[Any, ...] = (),
    names: tuple[str, str] = ("image_features", "text_features"),
) -> Batch:
    """Check every argument; without folds no pair is positive.

    ``own`` is what the loss has beside the shared options, as far as all ranks must agree on it,
    numbers, words and tensors; ``names`` are those of the features in errors about their rows.

    Raises:
        TypeError, ValueError: an argument is not as described.
        BackendUnavailableError: the backend asked for cannot run.
        RuntimeError: another rank of the process group has an error.
    """
    if options.process_group is None:
        c = _check(image_features, text_features, logit_scale, options)
        if folds is None:
            tables = tables_without_pairs(c.x.shape[0], c.y.shape[0], c.x.device)
        else:
            tables = resolve_folds(folds, c.x, c.y, names)
        return Batch(**c._asdict(), tables=tables, options=options, generator=generator, shard=None)
    with SharedErrors(options.process_group):
        ranks = Ranks(options.process_group)
        c = _check(image_features, text_features, logit_scale, options)
        x, y = c.x, c.y
        made = None if folds is None else as_folds(folds, x.device)
        ids = None
        if made is not None:
            ids = made.ids(x.shape[0], y.shape[0], x.device, ("folds", *names))
        facts = facts_of(x, y, logit_scale, options, made, generator, own)
    # Drawn from the CPU's default generator, which this advances on every rank alike.
    seed = int(torch.randint(2**62, (), device="cpu")) if generator is None else 0
    agreed = ranks.agree(facts, (x.shape[0], y.shape[0]), seed, x.device)
    if generator is None:
        generator = torch.Generator(x.device).manual_seed(agreed.seed)
    for name, rows in zip(names, (agreed.images, agreed.texts), strict=True):
        if not sum(rows):
            raise ValueError(f"{name} must have at least one row on some rank, got none")
    if ids is not None and made is not None and made.is_uniform:
        first = sum(m // made.views for m in agreed.images[: ranks.rank])
        ids = ids[0] + first, ids[1] + first
    ring = options.gather == "ring"
    shard = Shard.of(ranks, agreed.images, agreed.texts, ids, x.device, ring=ring)
    if folds is not None:
        _require_pairs(shard.tables)
    return Batch(
        **c._asdict(), tables=shard.tables, options=options, generator=generator, shard=shard
    )


class _Checked(NamedTuple):
    """What a batch has of the arguments; the fields are those of :class:`Batch`."""

    x: Tensor
    y: Tensor
    teacher: tuple[Tensor, Tensor] | None
    scales: tuple[Tensor, Tensor]
    teacher_scales: tuple[Tensor, Tensor]
    queues: tuple[QueuedRows | None, QueuedRows | None]
    dtype: torch.dtype
    backend: str


def _check(
    image_features: Tensor, text_features: Tensor, logit_scale: Scale, o: Resolved
) -> _Checked:
    scales_given = logit_scale if isinstance(logit_scale, tuple | list) else (logit_scale,)
    refuse_transforms(image_features, text_features, *scales_given)
    x, y = _as_read(image_features), _as_read(text_features)
    teachers = _as_read(o.teacher_image_features), _as_read(o.teacher_text_features)
    checks.check_features(x, y, may_be_empty=o.process_group is not None)
    teacher = checks.check_teacher(x, y, *teachers)
    check_rows(o, x, y)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    scales = _scales(logit_scale, x, y, dtype)
    teacher_scales = scales[0].detach(), scales[1].detach()
    if scales[0] is scales[1]:
        teacher_scales = teacher_scales[0], teacher_scales[0]
    if o.teacher_logit_scale is not None:
        t = checks.as_scale("teacher_logit_scale", o.teacher_logit_scale, x, dtype).detach()
        teacher_scales = t, t
    name = backends.choose(o.backend, x.device, x.dtype)
    queues = check_queues(o, x, y)
    return _Checked(x, y, teacher, scales, teacher_scales, queues, dtype, name)


def _as_read(features: _MaybeTensor) -> _MaybeTensor:
    """Features as the operator reads and autograd saves them."""
    return out_of_inference(autocast(features))


def _scales(logit_scale: Scale, x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One scale for both directions (the same tensor twice), or one for each row and column."""
    if not isinstance(logit_scale, tuple | list):
        s = checks.as_scale("logit_scale", logit_scale, x, dtype)
        return s, s
    if len(logit_scale) != 2:
        raise TypeError(
            "logit_scale must be a number, a tensor or a pair of tensors ((M,), (N,)), "
            f"got {len(logit_scale)} of them"
        )
    names = "logit_scale[0]", "logit_scale[1]"
    rows = row_vector(names[0], logit_scale[0], x.shape[0], x, dtype)
    cols = row_vector(names[1], logit_scale[1], y.shape[0], y, dtype)
    return checks.positive_vector(names[0], rows), checks.positive_vector(names[1], cols)


def as_folds(folds: FoldsLike, device: torch.device) -> Folds:
    """``folds`` in any of its forms, on ``device``."""
    if isinstance(folds, Folds):
        return folds
    if not isinstance(folds, tuple | list) or len(folds) != 2:
        raise TypeError(
            "folds must be Folds, a pair (views, captions) of integers or a pair "
            f"(image_ids, text_ids), got {type(folds).__name__}"
        )
    first, second = folds
    if isinstance(first, Integral) and isinstance(second, Integral):
        return Folds.uniform(int(first), int(second))
    if isinstance(first, Real) or isinstance(second, Real):
        raise TypeError(
            "folds must be Folds, a pair (views, captions) of integers or a pair "
            f"(image_ids, text_ids), got a pair of {type(first).__name__} and "
            f"{type(second).__name__}"
        )
    return Folds.from_ids(cast(Ids, first), cast(Ids, second)).to(device)


def resolve_folds(
    folds: FoldsLike,
    x: Tensor,
    y: Tensor,
    names: tuple[str, str] = ("image_features", "text_features"),
) -> FoldTables:
    """The positive pairs of these features; a batch without one is an error."""
    made = as_folds(folds, x.device)
    tables = made.tables(x.shape[0], y.shape[0], x.device, ("folds", *names))
    _require_pairs(tables)
    return tables


def _require_pairs(tables: FoldTables) -> None:
    if tables.pairs == 0:
        raise ValueError(
            "folds: expected at least one positive pair, got none: no id is on both the image "
            "and the text side"
        )
