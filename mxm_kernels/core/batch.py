"""From the arguments of a loss to a batch: everything checked, on one process or over ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, cast

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.interface import PairRules
from mxm_kernels.core import arguments
from mxm_kernels.core.arguments import Teacher
from mxm_kernels.core.options import FoldsLike, Options, Resolved, Scale, resolve
from mxm_kernels.core.queues import QueuedRows
from mxm_kernels.distributed.agreement import facts_of
from mxm_kernels.distributed.ranks import Agreement, Ranks
from mxm_kernels.distributed.shards import Shard, tables_over_ranks
from mxm_kernels.folds import Folds, Ids
from mxm_kernels.folds.folds import is_scalar, kind_of
from mxm_kernels.folds.make import tables_without_pairs
from mxm_kernels.folds.segments import Segments
from mxm_kernels.folds.tables import FoldTables

SIDES = ("image_features", "text_features")


@dataclass(frozen=True, eq=False)
class Batch:
    """Features, scales and folds of one call, checked and on one device.

    M and N are the rows of this process, R = M + N those of its list of rows.
    """

    x: Tensor  # (M, D)
    y: Tensor  # (N, D)
    teacher: Teacher | None  # (M, D'), (N, D')
    scales: tuple[Tensor, Tensor]  # () both the same tensor, or (M,) and (N,)
    teacher_scales: tuple[Tensor, Tensor]
    queues: tuple[QueuedRows | None, QueuedRows | None]  # what the images see, what the texts see
    row_weights: tuple[Tensor | None, Tensor | None]  # (M,), (N,)
    soft_weights: tuple[Tensor, Tensor] | None  # (M,), (N,), where soft_weight is a pair
    rules: PairRules  # of this process's rows, the thresholds in the teacher's similarities
    dtype: torch.dtype  # of the loss
    options: Resolved
    backend: str
    generator: torch.Generator | None  # source of every draw
    tables: FoldTables  # of the rows of all ranks
    shard: Shard | None  # what this process has of the batch; None: all of it

    @property
    def one_scale(self) -> bool:
        """Whether S is one matrix for both directions."""
        return self.scales[0].ndim == 0

    @property
    def has_soft(self) -> bool:
        """Whether the soft loss has a share."""
        return self.soft_weights is not None or self.options.soft_weight != 0

    @property
    def filters(self) -> bool:
        """Whether the teacher's similarities remove negatives."""
        return self.rules.thresholds is not None or self.options.filter_margin is not None

    @property
    def removes(self) -> bool:
        """Whether ids or the filter remove negatives."""
        ids = self.rules.exclude_ids is not None or self.rules.within_ids is not None
        return ids or self.filters

    @property
    def segments(self) -> Segments:
        """The positives of this process's rows."""
        return self.tables.segments if self.shard is None else self.shard.segments

    @property
    def image_positives(self) -> int:
        """Number of positives of this process's image rows."""
        return self.tables.pairs if self.shard is None else len(self.shard.sent_slots)

    @property
    def has_unpaired_rows(self) -> bool:
        """Whether a row, of any rank, has no positive."""
        t = self.tables
        return t.images_with_positive < t.images or t.texts_with_positive < t.texts

    def halves(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) -> (M,) of the images and (N,) of the texts."""
        images, texts = rows.split([len(self.x), len(self.y)])
        return images, texts

    def local_rows(self, rows: Tensor) -> Tensor:
        """(R,) the numbers of this process's rows, from numbers of the rows of all ranks."""
        return rows if self.shard is None else self.shard.local_rows(rows)

    def local_positives(self, positives: Tensor) -> Tensor:
        """(L,) the numbers of this process's positives, from those of all ranks."""
        return positives if self.shard is None else self.shard.local_positives(positives)

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the ranks of a value of this process's rows."""
        return value if self.shard is None else self.shard.ranks.sum(value)


def make_batch(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None,
    logit_scale: Scale,
    options: Options,
    *,
    reads_teacher: bool = False,
    draws: bool = False,
    generator: torch.Generator | None = None,
    names: tuple[str, str] = SIDES,
    change_tables: Callable[[FoldTables], FoldTables] | None = None,
) -> Batch:
    """Check every argument; without folds no pair is positive.

    ``reads_teacher``: the loss reads the teacher whatever ``soft_weight`` is. ``draws``: it draws,
    so ranks without a ``generator`` need a seed. ``names`` are those of the features in errors
    about their rows. ``change_tables`` is applied to the pairs of all ranks' rows; whoever gives
    it also checks that there are pairs.

    Raises:
        TypeError, ValueError: an argument is not as described.
        BackendUnavailableError: the backend asked for cannot run.
        RuntimeError: another rank of the process group has an error.
    """
    o = resolve(options, reads_teacher=reads_teacher)
    checked = arguments.read(image_features, text_features, logit_scale, o)
    x, y = checked.x, checked.y
    backend = backends.choose(o.backend, x.device, x.dtype)
    made, agreed = None if folds is None else as_folds(folds, x.device), None
    needs_seed = draws and generator is None
    if o.process_group is not None:
        # Drawn from the CPU's default generator, which this advances on every rank alike.
        seed = int(torch.randint(2**62, (), device="cpu")) if needs_seed else 0
        given = {"logit_scale": logit_scale, "folds": made, "generator": generator}
        agreed, tables = _agree(o.process_group, x, y, made, o, given, seed, names)
        if needs_seed:
            generator = torch.Generator(x.device).manual_seed(agreed.seed)
    elif made is None:
        tables = tables_without_pairs(len(x), len(y), x.device)
    else:
        tables = made.tables(len(x), len(y), x.device, ("folds", *names))
    if change_tables is not None:
        tables = change_tables(tables)
    elif made is not None:
        _require_pairs(tables)
    shard = None
    if agreed is not None:
        ring = o.gather == "ring"
        shard = Shard.of(o.process_group, agreed.images, agreed.texts, tables, ring=ring)
    return Batch(
        *checked,  # the fields of Arguments are the first of Batch
        options=o,
        backend=backend,
        generator=generator,
        tables=tables,
        shard=shard,
    )


def with_soft_weights(batch: Batch, shares: Tensor) -> Batch:
    """The same batch with another ``soft_weight``: ``shares`` (R,), one for each row."""
    return replace(batch, soft_weights=batch.halves(shares))


def _agree(
    ranks: Ranks,
    x: Tensor,
    y: Tensor,
    folds: Folds | None,
    o: Resolved,
    others: dict[str, Any],
    seed: int,
    names: tuple[str, str],
) -> tuple[Agreement, FoldTables]:
    """Agree with the other ranks on the call; the tables of the rows of all ranks.

    ``others`` are arguments beside the features and the options, ``seed`` that of this rank.
    """
    ids = None if folds is None else folds.ids(len(x), len(y), x.device, ("folds", *names))
    given = {
        **ranks.arguments,
        **o._asdict(),
        **others,
        **dict(zip(SIDES, (x, y), strict=True)),
        "D": x.shape[1],
        "dtype": x.dtype,
    }
    del given["process_group"]
    agreed = ranks.agree(facts_of(given, x.device), (len(x), len(y)), seed, x.device)
    for name, rows in zip(names, (agreed.images, agreed.texts), strict=True):
        if not sum(rows):
            raise ValueError(f"{name} must have at least one row on some rank, got none")
    if ids is not None and folds is not None and folds.is_uniform:
        first = sum(m // folds.views for m in agreed.images[: ranks.rank])
        ids = ids[0] + first, ids[1] + first
    return agreed, tables_over_ranks(ranks, agreed.images, agreed.texts, ids, x.device)


def require_folds(folds: object) -> None:
    """Refuse None, in a loss that reads the positives of every row."""
    if folds is None:
        raise TypeError(
            "folds must be Folds, a pair (views, captions) of integers or a pair "
            "(image_ids, text_ids), got None"
        )


def as_folds(folds: FoldsLike, device: torch.device) -> Folds:
    """``folds`` in any of its forms, on ``device``."""
    if isinstance(folds, Folds):
        return folds
    if not isinstance(folds, (tuple, list)) or len(folds) != 2:
        raise TypeError(
            "folds must be Folds, a pair (views, captions) of integers or a pair "
            f"(image_ids, text_ids), got {type(folds).__name__}"
        )
    first, second = folds
    if _is_count(first) and _is_count(second):
        return Folds.uniform(int(cast(int, first)), int(cast(int, second)))
    if any(isinstance(part, Real) or is_scalar(part) for part in (first, second)):
        raise TypeError(
            "folds must be Folds, a pair (views, captions) of integers or a pair "
            f"(image_ids, text_ids), got a pair of {kind_of(first)} and {kind_of(second)}"
        )
    return Folds.from_ids(cast(Ids, first), cast(Ids, second)).to(device)


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def resolve_folds(folds: FoldsLike, x: Tensor, y: Tensor) -> FoldTables:
    """The positive pairs of these features; a batch without one is an error."""
    tables = as_folds(folds, x.device).tables(len(x), len(y), x.device, ("folds", *SIDES))
    _require_pairs(tables)
    return tables


def _require_pairs(tables: FoldTables) -> None:
    if tables.pairs == 0:
        raise ValueError(
            "folds: expected at least one positive pair, got none: no id is on both the image "
            "and the text side"
        )
