"""Vectors with a number or an id for each row of some features, and a teacher's rows: checked."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import threshold

from mxm_kernels import checks
from mxm_kernels.core.features import as_saved

NO_ID = -1  # an id that says nothing


def check_teacher_rows(name: str, teacher: object, student_name: str, student: Tensor) -> Tensor:
    """One side of a teacher: a row for each of the student's, in its dtype on its device."""
    if not isinstance(teacher, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(teacher).__name__}")
    checks.check_dense(name, teacher)
    if teacher.ndim != 2 or teacher.shape[0] != student.shape[0]:
        raise ValueError(
            f"{name} must have shape ({student.shape[0]}, D), a row for each row of "
            f"{student_name}, got {tuple(teacher.shape)}"
        )
    checks.check_alike(name, teacher, student_name, student)
    return teacher


def as_row_vector(name: str, value: object, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating-point vector with a number for each of ``rows`` (rows, D), in ``dtype``.

    Raises:
        TypeError, ValueError: ``value`` is not one.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    checks.check_dense(name, value)
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
    _check_beside(name, value, rows)
    return as_saved(value).to(dtype)


def as_row_weights(name: str, value: object, rows: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Weights of some rows, finite and not negative.

    On a GPU, which is not waited for, negative ones are NaN, as the loss is of infinite ones.
    """
    if value is None:
        return None
    vector = as_row_vector(name, value, rows, dtype)
    if not checks.can_look(vector):
        return threshold(vector, -torch.finfo(dtype).smallest_normal, torch.nan)
    if not bool((vector >= 0).all()):
        wrong = float(vector.detach()[~(vector >= 0)][0])
        raise ValueError(f"{name} must not be negative or NaN, got {wrong}")
    if bool((vector == torch.inf).any()):
        raise ValueError(f"{name} must be finite, got inf")
    return vector


def as_offsets(name: str, value: object, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows,) finite offsets; NaN passes, and the loss shows it, as it does infinity on a GPU."""
    vector = as_row_vector(name, value, rows, dtype)
    if not checks.can_look(vector):
        return torch.add(vector, vector.detach(), alpha=0)
    if bool(vector.isinf().any()):
        wrong = float(vector.detach()[vector.isinf()][0])
        raise ValueError(
            f"{name} must be finite, got {wrong}: to leave pairs out of the negatives give "
            "exclude_ids"
        )
    return vector


def as_thresholds(name: str, value: object, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows,) detached thresholds; they may be infinite. NaN is an error on a CPU alone."""
    vector = as_row_vector(name, value, rows, dtype).detach()
    if checks.can_look(vector) and bool(vector.isnan().any()):
        raise ValueError(f"{name} must not be NaN, got nan")
    return vector


def as_ids(name: str, value: object, rows: Tensor) -> Tensor:
    """(rows,) int64 ids beside rows (rows, D)."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be an int64 tensor, got {type(value).__name__}")
    checks.check_dense(name, value)
    if value.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor, got {value.dtype}")
    _check_beside(name, value, rows)
    return as_saved(value)


def _check_beside(name: str, value: Tensor, rows: Tensor) -> None:
    """One entry for each of ``rows`` (rows, D), on their device."""
    if value.shape != (len(rows),):
        raise ValueError(f"{name} must have shape ({len(rows)},), got {tuple(value.shape)}")
    if value.device != rows.device:
        raise ValueError(
            f"{name} must be on the device of the features, {rows.device}, got {value.device}"
        )
