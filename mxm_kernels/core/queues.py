"""Features of past batches, which the rows of one side see as further columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from mxm_kernels import checks
from mxm_kernels.core.features import as_features
from mxm_kernels.core.options import Queue, Resolved
from mxm_kernels.core.vectors import as_ids, as_offsets, check_teacher_rows
from mxm_kernels.folds import Folds
from mxm_kernels.folds.make import tables_without_pairs
from mxm_kernels.folds.tables import FoldTables


class QueuedRows(NamedTuple):
    """A queue as the rows of one side see it."""

    name: str  # of the option
    features: Tensor  # (K, D), detached
    tables: FoldTables  # the side's rows against the queue: its pairs are no negatives
    offsets: Tensor | None  # (K,)
    exclude_ids: Tensor | None  # (K,) int64
    within_ids: Tensor | None  # (K,) int64
    teacher: Tensor  # (K, D'), detached; the features themselves where none were given
    teacher_name: str  # of what ``teacher`` is


def as_queued(name: str, queue: object, rows: Tensor, rows_name: str) -> QueuedRows | None:
    """``text_queue`` beside the images (M, D), or ``image_queue`` beside the texts (N, D)."""
    if queue is None:
        return None
    given = _as_queue(name, queue)
    features = as_features(given.features)
    checks.check_matrix(name, features)
    if features.shape[1] != rows.shape[1]:
        raise ValueError(
            f"{name} must have the dimension D of the features, {rows.shape[1]}, "
            f"got {features.shape[1]}"
        )
    checks.check_alike(name, features, "image_features", rows)
    features = features.detach()
    if given.folds is None:
        tables = tables_without_pairs(len(rows), len(features), rows.device)
    else:
        names = name, rows_name, "the queue"
        tables = given.folds.tables(len(rows), len(features), rows.device, names)
    dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
    offsets = given.offsets
    if offsets is not None:
        offsets = as_offsets(f"{name}.offsets", offsets, features, dtype).detach()
    ids = given.exclude_ids, given.within_ids
    named = zip(ids, ("exclude_ids", "within_ids"), strict=True)
    exclude, within = [
        None if value is None else as_ids(f"{name}.{field}", value, features)
        for value, field in named
    ]
    teacher, teacher_name = as_features(given.teacher_features), name
    if teacher is None:
        teacher = features
    else:
        teacher_name = f"{name}.teacher_features"
        check_teacher_rows(teacher_name, teacher, name, features)
    teacher = teacher.detach()
    return QueuedRows(name, features, tables, offsets, exclude, within, teacher, teacher_name)


def _as_queue(name: str, queue: object) -> Queue:
    """A queue in one of its forms."""
    if isinstance(queue, Tensor):
        return Queue(queue)
    if isinstance(queue, Queue):
        _check_folds(name, queue.folds)
        return queue
    if isinstance(queue, Sequence) and len(queue) == 2 and isinstance(queue[0], Tensor):
        features, folds = cast(tuple[Tensor, object], tuple(queue))
        _check_folds(name, folds)
        return Queue(features, cast("Folds | None", folds))
    raise TypeError(
        f"{name} must be a tensor of features or Queue(features, folds), got {type(queue).__name__}"
    )


def check_rules_of_queue(name: str, queue: object, o: Resolved, *, taught: bool) -> None:
    """What a queue says has to be read: ids beside those of the batch, a teacher's features by one.

    Raises:
        ValueError: nothing would read it.
    """
    if not isinstance(queue, Queue):
        return
    read = {
        "exclude_ids": o.exclude_ids is not None,
        "within_ids": o.within_ids is not None,
        "teacher_features": taught,
    }
    for field, there in read.items():
        if getattr(queue, field) is not None and not there:
            beside = field.replace("_", " ") if field == "teacher_features" else field
            raise ValueError(f"{name}.{field} was given without {beside}: nothing would read it")


def _check_folds(name: str, folds: object) -> None:
    if folds is not None and not isinstance(folds, Folds):
        raise TypeError(
            f"{name}: the folds of a queue must be Folds or None, got {type(folds).__name__}"
        )
