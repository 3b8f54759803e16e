"""How large the terms are that a gradient sums: the scale of its rounding error.

dS is a sum of softmax terms of both signs. Where they cancel (a trained model, a batch of one
instance), a relative error of dS can be anything; the error relative to the sum of the
absolute values of the terms is what floating-point arithmetic bounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.mfh import group_matrix, hard_rows, hard_rows_expected


def _direction(
    S: Tensor, T: Tensor | None, positives: Tensor, drawn: Tensor | None, hard: Tensor, soft: Tensor
) -> Tensor:
    """Sum of |terms| of dS for one direction; hard and soft are each row's weights."""
    leaf = S.detach().requires_grad_()
    rows = (
        hard_rows_expected(leaf, positives) if drawn is None else hard_rows(leaf, positives, drawn)
    )
    (grad,) = torch.autograd.grad((rows * hard).sum(), leaf)
    total = grad.abs()
    if T is not None:
        total = total + soft[:, None] * (S.softmax(1) + T.softmax(1))
    return total


def _weights(case, upstream: Tensor, positives: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Absolute weight of each row's hard and soft loss in the scalar that is differentiated."""
    hard_weight = case.hard_weight if case.teacher else 1.0
    if case.reduction == "none":
        rows = upstream[part].abs()
        return hard_weight * rows, (1 - hard_weight) * rows
    counted = positives.any(1).double()
    every = torch.ones_like(counted)
    half = upstream.abs() / 2
    return hard_weight * half * counted / counted.sum(), (1 - hard_weight) * half * every / len(
        every
    )


def magnitudes(case, features: list[Tensor], selection, upstream: Tensor) -> dict[str, float]:
    """Norm of the sums of absolute terms of each gradient, and the size of the loss's terms."""
    x, y, tx, ty = (f.double() for f in features)
    s = 1 / case.temperature
    S = s * x @ y.T
    T = (0.7 if case.own_teacher_scale else 1.0) * s * tx @ ty.T if case.teacher else None
    positives = group_matrix(*case.ids)
    drawn = (None, None) if selection is None else selection
    M = len(x)
    W = _direction(S, T, positives, drawn[0], *_weights(case, upstream, positives, slice(M)))
    columns = _weights(case, upstream, positives.T, slice(M, None))
    W = W + _direction(S.T, None if T is None else T.T, positives.T, drawn[1], *columns).T
    return {
        "loss": s * upstream.numel() ** 0.5,
        "image": float((s * W @ y.abs()).norm()),
        "text": float((s * W.T @ x.abs()).norm()),
        "scale": float((W * S.abs()).sum() / s),
    }
