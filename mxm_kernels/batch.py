"""From the arguments of a loss to its two directions: checks, the operator, the queues.

Where options need the matrix again they run the operator again: a queue once for its side, and
a scale for each row and column once for each direction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Integral
from typing import TypeVar, cast

import torch
from torch import Tensor

from mxm_kernels import backends, checks
from mxm_kernels.direction import Direction, add_log, image_to_text, text_to_image
from mxm_kernels.fold_tables import FoldTables, tables_without_pairs
from mxm_kernels.folds import Folds, Ids
from mxm_kernels.operator import statistics
from mxm_kernels.options import FoldsLike, Queue, Resolved, Scale, as_queue, row_vector

_MaybeTensor = TypeVar("_MaybeTensor", Tensor, Tensor | None)


@dataclass(frozen=True, eq=False)
class Batch:
    """Features, scales and folds of one call, checked and on one device."""

    x: Tensor  # (M, D)
    y: Tensor  # (N, D)
    teacher: tuple[Tensor, Tensor] | None  # (M, D'), (N, D')
    scales: tuple[Tensor, Tensor]  # () both the same, or (M,) and (N,)
    teacher_scales: tuple[Tensor, Tensor]
    tables: FoldTables
    options: Resolved
    dtype: torch.dtype  # of the loss
    backend: str

    @property
    def one_scale(self) -> bool:
        """Whether S is one matrix for both directions."""
        return self.scales[0] is self.scales[1] and self.teacher_scales[0] is self.teacher_scales[1]

    @property
    def diagnosed(self) -> bool:
        """Whether the operator is to measure what diagnostics need."""
        return self.options.diagnostics is not None

    def with_soft(self, share: float | tuple[Tensor, Tensor]) -> Batch:
        """The same batch with another ``soft_weight``."""
        return replace(self, options=self.options._replace(soft_weight=share))


def make_batch(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None,
    logit_scale: Scale,
    options: Resolved,
) -> Batch:
    """Check every argument; without folds no pair is positive.

    Raises:
        TypeError, ValueError: an argument is not as described.
        BackendUnavailableError: the backend asked for cannot run.
    """
    o = options
    x, y = autocast(image_features), autocast(text_features)
    teachers = autocast(o.teacher_image_features), autocast(o.teacher_text_features)
    checks.check_features(x, y)
    teacher = checks.check_teacher(x, y, *teachers)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    scales = _scales(logit_scale, x, y, dtype)
    teacher_scales = scales[0].detach(), scales[1].detach()
    if scales[0] is scales[1]:
        teacher_scales = teacher_scales[0], teacher_scales[0]
    if o.teacher_logit_scale is not None:
        t = checks.as_scale("teacher_logit_scale", o.teacher_logit_scale, x, dtype).detach()
        teacher_scales = t, t
    name = backends.choose(o.backend, x.device, x.dtype)
    if folds is None:
        tables = tables_without_pairs(x.shape[0], y.shape[0], x.device)
    else:
        tables = resolve_folds(folds, x, y)
    return Batch(x, y, teacher, scales, teacher_scales, tables, options, dtype, name)


def directions(batch: Batch, *, soft: bool) -> tuple[Direction, Direction]:
    """Run the operator; ``soft`` says whether the teacher's statistics are wanted."""
    b = batch if soft else replace(batch, teacher=None)
    if b.one_scale:
        t = b.teacher_scales[0] if b.teacher is not None else None
        stats = statistics(b.x, b.y, b.teacher, b.scales[0], t, b.tables, b.backend, b.diagnosed)
        rows = image_to_text(stats, b.tables, b.scales[0])
        cols = text_to_image(stats, b.tables, b.scales[1])
    else:
        rows = image_to_text(_with_row_scales(b, 0), b.tables, b.scales[0])
        cols = text_to_image(_with_row_scales(b, 1), b.tables, b.scales[1])
    if b.options.label_smoothing:
        rows = replace(rows, total=_row_totals(b.x, b.y, b.scales[0], b.dtype))
        cols = replace(cols, total=_row_totals(b.y, b.x, b.scales[1], b.dtype))
    text_queue = as_queue("text_queue", b.options.text_queue)
    image_queue = as_queue("image_queue", b.options.image_queue)
    if text_queue is not None:
        rows = _with_queue(b, 0, rows, "text_queue", text_queue)
    if image_queue is not None:
        cols = _with_queue(b, 1, cols, "image_queue", image_queue)
    return rows, cols


def _with_row_scales(b: Batch, side: int):
    """Statistics of S with a scale for each row of one side: features carry the scales."""
    pair, one = [b.x, b.y], b.x.new_ones((), dtype=b.dtype)
    pair[side] = scaled(pair[side], b.scales[side])
    teacher, t = None, None
    if b.teacher is not None:
        made = list(b.teacher)
        made[side] = scaled(made[side], b.teacher_scales[side])
        teacher, t = (made[0], made[1]), one
    return statistics(pair[0], pair[1], teacher, one, t, b.tables, b.backend, b.diagnosed)


def scaled(features: Tensor, scale: Tensor) -> Tensor:
    """Each row times its scale, multiplied in the dtype of the loss, rounded once."""
    rows = scale.expand(features.shape[0])[:, None]
    return (features.to(scale.dtype) * rows).to(features.dtype)


def _row_totals(x: Tensor, y: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows,) sum_j S_ij = s <x_i, sum_j y_j>: no matrix."""
    return scale * torch.mv(x.to(dtype), y.sum(0, dtype=dtype))


def _with_queue(b: Batch, side: int, d: Direction, name: str, queue: Queue) -> Direction:
    """Merge the rows of a queue into a direction: negatives, and what its folds leave out."""
    x = (b.x, b.y)[side]
    features, tables = queue_features(b, side, name, queue)
    teacher, s, t = None, b.scales[side], b.teacher_scales[side]
    own = None if b.teacher is None else b.teacher[side]
    if s.ndim:  # a scale for each row
        x, own = scaled(x, s), None if own is None else scaled(own, t)
        s = t = b.x.new_ones((), dtype=b.dtype)
    if own is not None:
        teacher = own, features
    teacher_scale = None if own is None else t
    stats = statistics(x, features, teacher, s, teacher_scale, tables, b.backend, b.diagnosed)
    more = image_to_text(stats, tables, d.scale)
    merged = replace(d, n=add_log(d.n, more.n), columns=d.columns + more.columns - more.counts)
    if b.diagnosed:
        merged = replace(merged, m=torch.maximum(d.m, more.m))
    if own is not None:
        joint = torch.logaddexp(d.t, more.t)
        shares = (d.t - joint).exp(), (more.t - joint).exp()
        u = shares[0] * d.u + shares[1] * more.u
        merged = replace(merged, u=u, t=joint, excluded=more.logsumexp(more.S))
        if b.diagnosed:
            h = joint - shares[0] * (d.t - d.h) - shares[1] * (more.t - more.h)
            merged = replace(merged, h=h)
    if d.total is not None:
        total = _row_totals(x, features, s, b.dtype) - more.sum(more.S)
        merged = replace(merged, total=d.total + total)
    return merged


def queue_features(b: Batch, side: int, name: str, queue: Queue) -> tuple[Tensor, FoldTables]:
    """The queue's features, detached and checked, and which of its rows are no negatives."""
    x, features = (b.x, b.y)[side], autocast(queue.features)
    checks.check_matrix(name, features)
    if features.shape[1] != x.shape[1]:
        raise ValueError(
            f"{name} must have the dimension D of the features, {x.shape[1]}, "
            f"got {features.shape[1]}"
        )
    checks.check_alike(name, features, "image_features", x)
    if b.teacher is not None and b.teacher[0].shape[1] != x.shape[1]:
        raise ValueError(
            f"{name} stands in the teacher's matrix too: the teacher's features must have its "
            f"dimension {x.shape[1]}, got {b.teacher[0].shape[1]}"
        )
    if queue.folds is None:
        return features.detach(), tables_without_pairs(len(x), len(features), x.device)
    names = name, ("image_features", "text_features")[side], "the queue"
    return features.detach(), queue.folds.tables(len(x), len(features), x.device, names)


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


def autocast(features: _MaybeTensor) -> _MaybeTensor:
    """Cast as torch.autocast casts the factors of a matrix product; float64 stays."""
    if not isinstance(features, Tensor) or features.is_meta:
        return features
    device = features.device.type
    if not torch.is_autocast_enabled(device):
        return features
    if features.dtype not in checks.FEATURE_DTYPES or features.dtype == torch.float64:
        return features
    return cast(_MaybeTensor, features.to(torch.get_autocast_dtype(device)))


def resolve_folds(folds: FoldsLike, x: Tensor, y: Tensor) -> FoldTables:
    """The positive pairs of these features; a batch without one is an error."""
    if not isinstance(folds, Folds):
        if not isinstance(folds, tuple | list) or len(folds) != 2:
            raise TypeError(
                "folds must be Folds, a pair (views, captions) of integers or a pair "
                f"(image_ids, text_ids), got {type(folds).__name__}"
            )
        first, second = folds
        if isinstance(first, Integral) and isinstance(second, Integral):
            folds = Folds.uniform(int(first), int(second))
        else:
            folds = Folds.from_ids(cast(Ids, first), cast(Ids, second)).to(x.device)
    tables = folds.tables(x.shape[0], y.shape[0], x.device)
    if tables.pairs == 0:
        raise ValueError(
            "folds: expected at least one positive pair, got none: no id is on both the image "
            "and the text side"
        )
    return tables
