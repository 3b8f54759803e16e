"""Options with a number for each row: their checks, which come before ranks agree on a batch.

And the vectors that they are, once a batch is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mxm_kernels import checks
from mxm_kernels.options import Resolved, row_vector

if TYPE_CHECKING:
    from mxm_kernels.algebra.batch import Batch


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
        wrong = float(vector.detach()[~(vector >= 0)][0])
        raise ValueError(f"{name} must not be negative or NaN, got {wrong}")


def soft_shares(batch: Batch) -> tuple[float | Tensor, float | Tensor]:
    """The share of the soft loss in each direction: a number or one for each row."""
    share = batch.options.soft_weight
    if not isinstance(share, tuple | list):
        return share, share
    rows, cols = (
        row_vector(f"soft_weight[{k}]", value, len(like), like, batch.dtype)
        for k, (value, like) in enumerate(zip(share, (batch.x, batch.y), strict=True))
    )
    return rows, cols


def row_weights(batch: Batch, side: int, losses: Tensor, counted: Tensor | None) -> Tensor | None:
    """``image_weights`` or ``text_weights``, checked."""
    name = ("image_weights", "text_weights")[side]
    value, is_part = getattr(batch.options, name), batch.shard is not None
    return nonnegative_weights(name, value, losses, counted, is_part=is_part)


def nonnegative_weights(
    name: str,
    value: Tensor | None,
    losses: Tensor,
    counted: Tensor | None,
    *,
    is_part: bool = False,
) -> Tensor | None:
    """Weights of the rows, which :func:`check_weights` has seen; on a GPU negative ones give NaN.

    ``is_part``: other ranks have rows too, so those of this one may all weigh nothing.
    """
    if value is None:
        return None
    vector = row_vector(name, value, losses.shape[0], losses, losses.dtype)
    if not checks.can_look(vector):
        return torch.where(vector >= 0, vector, torch.nan)
    positive = vector > 0 if counted is None else (vector > 0) & counted
    if not is_part and not bool(positive.any()):
        raise ValueError(f"{name}: expected a positive weight for a row that counts, got none")
    return vector
