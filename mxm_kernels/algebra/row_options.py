"""Options with a number for each row: their checks, which come before ranks agree on a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import checks
from mxm_kernels.options import Resolved, row_vector


def check_rows(o: Resolved, x: Tensor, y: Tensor) -> None:
    """Weights of the rows and shares of the soft loss.

    Raises:
        TypeError, ValueError: one is not a tensor of its side's rows, or out of its range.
    """
    check_weights("image_weights", o.image_weights, x)
    check_weights("text_weights", o.text_weights, y)
    if isinstance(o.soft_weight, tuple | list):
        for k, (value, rows) in enumerate(zip(o.soft_weight, (x, y), strict=True)):
            name = f"soft_weight[{k}]"
            vector = row_vector(name, value, len(rows), rows, torch.float32)
            if checks.can_look(vector) and not bool(((vector >= 0) & (vector <= 1)).all()):
                raise ValueError(f"{name} must be between 0 and 1")


def check_weights(name: str, value: Tensor | None, rows: Tensor) -> None:
    """Non-negative weights of some rows, or None."""
    if value is None:
        return
    vector = row_vector(name, value, len(rows), rows, torch.float32)
    if checks.can_look(vector) and not bool((vector >= 0).all()):
        raise ValueError(f"{name} must not be negative, got {float(vector.detach().min())}")
