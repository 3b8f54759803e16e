"""The queues of a batch: features of past batches, checked, for the rows that look at them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mxm_kernels import checks
from mxm_kernels.algebra.autocast import autocast
from mxm_kernels.algebra.modes import out_of_inference
from mxm_kernels.fold_tables import FoldTables, tables_without_pairs
from mxm_kernels.options import Queue, Resolved, as_queue


class QueuedRows(NamedTuple):
    """A queue as the rows of one side see it."""

    name: str  # of the option
    features: Tensor  # (K, D), detached
    tables: FoldTables  # own rows against the queue: its pairs are no negatives


def check_queues(o: Resolved, x: Tensor, y: Tensor) -> tuple[QueuedRows | None, QueuedRows | None]:
    """``text_queue`` beside the images (M, D), ``image_queue`` beside the texts (N, D).

    Raises:
        TypeError, ValueError: a queue is not as described.
    """
    text_queue, image_queue = (
        as_queue(name, getattr(o, name)) for name in ("text_queue", "image_queue")
    )
    return (
        None if text_queue is None else _check("text_queue", text_queue, x, "image_features"),
        None if image_queue is None else _check("image_queue", image_queue, y, "text_features"),
    )


def _check(name: str, queue: Queue, rows: Tensor, rows_name: str) -> QueuedRows:
    features = out_of_inference(autocast(queue.features))
    checks.check_matrix(name, features)
    if features.shape[1] != rows.shape[1]:
        raise ValueError(
            f"{name} must have the dimension D of the features, {rows.shape[1]}, "
            f"got {features.shape[1]}"
        )
    checks.check_alike(name, features, "image_features", rows)
    if queue.folds is None:
        tables = tables_without_pairs(len(rows), len(features), rows.device)
    else:
        names = name, rows_name, "the queue"
        tables = queue.folds.tables(len(rows), len(features), rows.device, names)
    return QueuedRows(name, features.detach(), tables)
