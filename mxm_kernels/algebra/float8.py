"""The teacher as the operator reads it: in the dtype of the features, or rounded to float8."""

from __future__ import annotations

from torch import Tensor

from mxm_kernels.algebra.batch import Batch
from mxm_kernels.operators.float8 import float8_teacher, largest_of

Teacher = tuple[Tensor, Tensor]


def as_read(
    batch: Batch, teacher: Teacher | None, t: Tensor | None
) -> tuple[Teacher | None, Tensor | None]:
    """Teacher features (M, D'), (N, D') and their scale (), in the batch's ``teacher_dtype``.

    Over ranks the factors of the rounding are those of all rows, so that one process has the same.
    """
    if teacher is None or t is None or batch.options.teacher_dtype is None:
        return teacher, t
    largest = largest_of(*teacher, batch.dtype)
    if batch.shard is not None:
        largest = batch.shard.ranks.greatest(largest)
    return float8_teacher(teacher, t, largest)
