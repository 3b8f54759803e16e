"""Features of past batches, which the rows of one side see as further columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from torch import Tensor

from mxm_kernels import checks
from mxm_kernels.core.features import as_features
from mxm_kernels.core.options import Queue
from mxm_kernels.folds import Folds
from mxm_kernels.folds.make import tables_without_pairs
from mxm_kernels.folds.tables import FoldTables


class QueuedRows(NamedTuple):
    """A queue as the rows of one side see it."""

    name: str  # of the option
    features: Tensor  # (K, D), detached
    tables: FoldTables  # the side's rows against the queue: its pairs are no negatives


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
    if given.folds is None:
        tables = tables_without_pairs(len(rows), len(features), rows.device)
    else:
        names = name, rows_name, "the queue"
        tables = given.folds.tables(len(rows), len(features), rows.device, names)
    return QueuedRows(name, features.detach(), tables)


def _as_queue(name: str, queue: object) -> Queue:
    """A queue in one of its forms."""
    if isinstance(queue, Tensor):
        return Queue(queue)
    if isinstance(queue, Sequence) and len(queue) == 2 and isinstance(queue[0], Tensor):
        features, folds = cast(tuple[Tensor, object], tuple(queue))
        if folds is None or isinstance(folds, Folds):
            return Queue(features, folds)
        raise TypeError(
            f"{name}: the folds of a queue must be Folds or None, got {type(folds).__name__}"
        )
    raise TypeError(
        f"{name} must be a tensor of features or Queue(features, folds), got {type(queue).__name__}"
    )
