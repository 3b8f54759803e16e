"""The paper's computation as written: similarity matrix, masks, rounds in a loop; compiled too."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.batch import Batch, Selection
from bench.cases import Case
from bench.providers.provider import Provider

HARD_WEIGHT = 0.6
COMPILED_ROUNDS = 10  # unrolled; 100 compile for many minutes


def logits(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """``scale * x y^T``, (M, N): the product in the features' dtype, the rest in float32.

    That is what autocast does to the losses that people train with.
    """
    product = x @ y.T
    return scale * (product if product.dtype == torch.float64 else product.float())


def _direction(S: Tensor, T: Tensor | None, positives: Tensor, selections: Tensor) -> Tensor:
    """Equations 5 to 9 for one direction. ``selections`` (rounds, rows): the drawn positives."""
    hard = S.new_zeros(())
    for selected in selections:
        unselected = positives.scatter(1, selected[:, None], False)
        hard = hard + cross_entropy(S.masked_fill(unselected, -torch.inf), selected)
    hard = hard / len(selections)
    if T is None:
        return hard
    soft = -(T.softmax(1) * S.log_softmax(1)).sum(1).mean()
    return HARD_WEIGHT * hard + (1 - HARD_WEIGHT) * soft


def _mfh(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    teacher_x: Tensor | None,
    teacher_y: Tensor | None,
    image_ids: Tensor,
    text_ids: Tensor,
    to_text: Tensor,
    to_image: Tensor,
) -> Tensor:
    S = logits(x, y, scale)
    T = None
    if teacher_x is not None and teacher_y is not None:
        T = logits(teacher_x, teacher_y, scale.detach())
    positives = image_ids[:, None] == text_ids
    images = _direction(S, T, positives, to_text)
    return (images + _direction(S.T, None if T is None else T.T, positives.T, to_image)) / 2


@cache
def _compiled():
    return torch.compile(_mfh, fullgraph=True, dynamic=False)


def _arguments(batch: Batch) -> tuple[Any, ...]:
    b = batch
    return b.x, b.y, b.scale, b.teacher_x, b.teacher_y, b.image_ids, b.text_ids


def _bytes(case: Case) -> int:
    """About what autograd keeps: two directions of every round (float32 and mask), and the rest."""
    rounds = (case.captions + case.views) / 2 if case.rounds is None else case.rounds
    return int(case.M * case.N * (2 * rounds * 6 + (40 if case.teacher else 24)))


def _eager(batch: Batch, selection: Selection) -> Tensor:
    return _mfh(*(*_arguments(batch), *selection))


def _run_compiled(batch: Batch, selection: Selection) -> Tensor:
    return _compiled()(*_arguments(batch), *selection)


def _too_many_rounds(case: Case) -> str | None:
    if (case.rounds or 0) > COMPILED_ROUNDS:
        return f"more than {COMPILED_ROUNDS} unrolled rounds take minutes to compile"
    return None


DENSE, COMPILED = "dense eager", "dense torch.compile"
PROVIDERS = [
    Provider(DENSE, _eager, workspace=_bytes),
    Provider(
        COMPILED,
        _run_compiled,
        refuses=lambda case, device: _too_many_rounds(case),
        workspace=lambda case: _bytes(case) // 2,
    ),
]
