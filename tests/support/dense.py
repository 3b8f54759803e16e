"""The public losses from matrices and masks, in any dtype: what ``support.calls`` is held to."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference import family, rules
from reference.mfh import group_matrix, soft_rows
from tests.support.calls import SHARES, Given, Made
from tests.support.cases import in_float8
from tests.support.family import BIAS, Loss, soft_of_teacher


class Side(NamedTuple):
    """The rows of one direction, dense."""

    hard: Tensor
    soft: Tensor
    share: float | Tensor  # of the soft loss
    counted: Tensor  # which rows count in the mean of the hard losses
    weights: Tensor | None  # of the rows
    S: Tensor
    T: Tensor
    scale: Tensor
    positives: Tensor
    negatives: Tensor


def dense(loss: Loss, given: Given, dtype: torch.dtype) -> Made:
    """The same with matrices and masks, all arithmetic in ``dtype``."""
    c = given.choice
    x, y = (f.to(dtype, copy=True).requires_grad_() for f in (given.x, given.y))
    leaves: list[Tensor] = [x, y]
    if c.logit_scale == "rows":
        scales = tuple(s.to(dtype, copy=True).requires_grad_() for s in given.row_scales)
        leaves += scales
    else:
        one = given.scale.to(dtype, copy=True).requires_grad_()
        scales = one, one
        leaves.append(one)
    extra = {}
    if "bias" in loss.needs:
        extra["bias"] = torch.tensor(BIAS, dtype=dtype, requires_grad=True)
        leaves.append(extra["bias"])
    if "label_smoothing" in loss.options:
        extra["smoothing"] = c.label_smoothing
    offsets = _offsets(given, dtype)
    leaves += [v for name, v in offsets.items() if v.requires_grad]
    if loss.one_modality:
        side = _within(loss, given, x, scales[0], given.tx.to(dtype), offsets["images"])
        value = _mixed(side) if c.reduction == "none" else _mean(side)
        return Made(value, [x, *leaves[2:]], {})
    tx, ty = given.tx.to(dtype), given.ty.to(dtype)
    if loss.drawn == "rows" and not loss.reads_teacher(c):
        tx, ty = x.detach(), y.detach()
    sides = [
        _side(loss, given, 0, (x, y, tx, ty), scales[0], offsets, extra),
        _side(loss, given, 1, (y, x, ty, tx), scales[1], offsets, extra),
    ]
    seen = _diagnosed(sides, loss) if c.diagnostics else {}
    if c.reduction == "none":
        return Made(tuple(map(_mixed, sides)), leaves, seen)
    share = c.image_to_text_weight
    return Made(share * _mean(sides[0]) + (1 - share) * _mean(sides[1]), leaves, seen)


def _offsets(given: Given, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of the images, the texts and the queues; 0 where there are none."""
    made = {}
    for name, numbers in given.rules.offsets.items():
        kind = given.choice.image_offsets
        there = kind == "both" or (kind == "one side" and name == "images")
        made[name] = (numbers if there else torch.zeros_like(numbers)).to(dtype, copy=True)
        if there and name in ("images", "texts"):
            made[name].requires_grad_()
    return made


def _side(
    loss: Loss,
    given: Given,
    k: int,
    features: tuple[Tensor, ...],
    scale: Tensor,
    offsets: dict[str, Tensor],
    extra: dict[str, Any],
) -> Side:
    """One direction; ``features`` are x and y, and the teacher's."""
    c, case, (a, b, ta, tb) = given.choice, given.case, features
    dtype, queue = a.dtype, ("text_queue", "image_queue")[k]
    positives = group_matrix(*case.ids) if k == 0 else group_matrix(*case.ids).T
    if "folds" in loss.function.not_taken:
        positives = torch.zeros_like(positives)
    weights = _weights(loss, given, positives, k)
    negatives, columns, seen = ~positives, [tb], None
    if getattr(c, queue) != "none":
        seen = queue
        queued, ids = given.queues[queue]
        of_teacher = given.queue_teachers[queue] if given.has_queue_teacher(queue) else queued
        b, columns = torch.cat([b, queued.to(dtype)]), [tb, of_teacher.to(dtype)]
        matches = group_matrix(case.ids[k], ids)
        if getattr(c, queue) == "negatives":
            matches = torch.zeros_like(matches)
        positives = torch.cat([positives, torch.zeros_like(matches)], 1)
        negatives = torch.cat([negatives, ~matches], 1)
        weights = torch.cat([weights, torch.zeros(matches.shape)], 1)
    S = _logits(given, scale[:, None] if scale.ndim else scale, a, b)
    S = rules.with_offsets(S, *given.rules.side(offsets, k, seen))
    own = scale.detach() if given.teacher_scale is None else scale.new_tensor(given.teacher_scale)
    T, similarities = _targets(given, own.to(dtype), ta, columns)
    if c.teacher_image_offsets:
        of_queue = {queue: torch.zeros(len(given.queues[queue][1]), dtype=dtype)}
        told = {**given.rules.teacher_offsets, **of_queue}
        T = rules.with_offsets(T, *given.rules.side(told, k, seen)).to(dtype)
    negatives &= ~given.rules.removed(c, k, seen, similarities, positives)
    row_weights = given.weights[k].to(dtype) if _weighed(c, k) else None
    every = torch.ones(len(S), dtype=torch.bool)
    counted = every if loss.every_row else positives.any(1)
    parts = row_weights, S, T, scale, positives, negatives
    if not loss.pairs:
        losses = loss.dense(S, T, ta @ tb.T)
        return Side(losses, torch.zeros_like(losses), 0.0, counted, *parts)
    if "scale" in loss.needs:
        extra = extra | {"scale": scale}
    hard = loss.dense(S, positives, negatives, weights.to(dtype), **extra)
    share = _share(loss, given, k, dtype)
    soft = soft_rows(S, T) if isinstance(share, Tensor) or share else torch.zeros_like(hard)
    return Side(hard, soft, share, counted, *parts)


def _within(
    loss: Loss, given: Given, x: Tensor, scale: Tensor, teacher: Tensor, offsets: Tensor
) -> Side:
    """The rows of one modality, in which a row itself takes no part."""
    c, dtype = given.choice, x.dtype
    same = group_matrix(given.case.ids[0], given.case.ids[0])
    itself = torch.eye(len(x), dtype=torch.bool)
    others = same & ~itself
    weights = given.drawn_within(others) if loss.drawn else loss.weights(others)
    S = rules.with_offsets(scale * x @ x.T, offsets, offsets)
    own = scale.detach() if given.teacher_scale is None else given.teacher_scale
    T = own * teacher @ teacher.T
    if c.teacher_image_offsets:
        told = given.rules.teacher_offsets["images"].to(dtype)
        T = rules.with_offsets(T, told, told)
    negatives = ~same & ~given.rules.within(c, teacher @ teacher.T, others)
    hard = loss.dense(S, others, negatives, weights.to(dtype))
    soft = family.soft(S, T, ~itself)
    row_weights = given.weights[0].to(dtype) if c.image_weights else None
    share = SHARES[c.soft_weight]
    return Side(hard, soft, share, others.any(1), row_weights, S, T, scale, others, negatives)


def _weighed(c: Any, side: int) -> bool:
    return bool((c.image_weights, c.text_weights)[side])


def _logits(given: Given, scale: float | Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``scale * a b^T``; scales of rows stand in 16-bit features, multiplied in float32."""
    if given.dtype.itemsize > 2 or given.choice.logit_scale != "rows":
        return scale * (a @ b.T)
    exact, number = scale * a, scale.detach().float() if isinstance(scale, Tensor) else scale
    rounded = (number * a.detach().float()).to(given.dtype).to(exact)
    return (exact + (rounded - exact).detach()) @ b.T


def _targets(
    given: Given, scale: Tensor, a: Tensor, columns: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """T and the similarities, of features that may be in float8, matrix by matrix."""
    unit = torch.ones_like(a[:, :1])
    if given.choice.logit_scale == "rows":  # whose features carry it
        wide = torch.float64 if given.dtype == torch.float64 else torch.float32
        numbers = scale.to(wide)[:, None] if scale.ndim else scale.to(wide)
        a, scale = (numbers * a.to(wide)).to(given.dtype).to(a), torch.ones_like(a[0, 0])
        unit = numbers.to(a)
    if given.choice.teacher_dtype is not None:
        a, columns = in_float8(a), [in_float8(b) for b in columns]
    products = (a @ torch.cat(columns).T).detach()
    return (scale * products).detach(), products / unit


def _weights(loss: Loss, given: Given, positives: Tensor, side: int) -> Tensor:
    """Of the positive pairs, in one direction."""
    if given.choice.pair_weights:
        same = positives if side == 0 else positives.T
        weights = torch.zeros(same.shape, dtype=torch.float64)
        weights[same] = given.pair_weights[side]  # row-major: by image, then by text
        return weights if side == 0 else weights.T
    if loss.drawn in ("positives", "selection"):
        return given.drawn_weights(side)
    return loss.weights(positives)


def _share(loss: Loss, given: Given, side: int, dtype: torch.dtype) -> float | Tensor:
    """Of the soft loss: a number, or one for each row."""
    if loss.drawn == "rows":
        return given.soft_rows()[side].to(dtype)
    kind = given.choice.soft_weight
    return given.soft[side].to(dtype) if kind == "rows" else SHARES[kind]


def _mixed(side: Side) -> Tensor:
    mixed = (1 - side.share) * side.hard + side.share * side.soft
    return mixed if side.weights is None else side.weights * mixed


def _mean(side: Side) -> Tensor:
    hard, soft = (1 - side.share) * side.hard, side.share * side.soft
    every = torch.ones_like(side.counted)
    if isinstance(side.share, float) and side.share == 1:  # no row need have a positive
        return family.mean(soft, every, side.weights)
    return family.mean(hard, side.counted, side.weights) + family.mean(soft, every, side.weights)


def _diagnosed(sides: list[Side], loss: Loss) -> dict[str, float]:
    """The diagnostics of both directions."""
    found, cosines = {}, []
    for name, side in zip(("image_to_text", "text_to_image"), sides, strict=True):
        S, scale = side.S.detach(), side.scale.detach()
        best = S.masked_fill(~side.positives, -torch.inf).amax(1)
        worst = S.masked_fill(~side.negatives, -torch.inf).amax(1)
        has, some = side.positives.any(1), side.negatives.any(1)
        if has.any():
            found[f"{name}_accuracy"] = float((best > worst)[has].double().mean())
        found[f"{name}_hardest_negative"] = float((worst / scale)[some].mean())
        if isinstance(side.share, Tensor) or side.share or loss.dense is soft_of_teacher:
            found[f"{name}_teacher_entropy"] = float(
                torch.special.entr(side.T.softmax(1)).sum(1).mean()
            )
        cosines.append((S / (scale[:, None] if scale.ndim else scale))[side.positives])
    if cosines and len(cosines[0]):
        found["positive_similarity"] = float(torch.cat(cosines).mean())
    return found
