"""The losses of the family: each fused function beside its dense form, with drawn options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

import mxm_kernels as mxm
from mxm_kernels import Folds, Queue
from reference import family
from reference.mfh import group_matrix, soft_rows
from tests.support.cases import Case

Rows = Callable[..., Tensor]  # (S, positives, negatives, weights, smoothing) -> (rows,)


@dataclass(frozen=True)
class Loss:
    """One loss: the function under test and its dense rows."""

    fused: Callable[..., Any]
    dense: Rows
    weights: Callable[[Tensor], Tensor]  # of the positives, from the group matrix
    cancels: bool = False  # dS is a difference of two probabilities
    needs_scale: bool = False
    own_weights: bool = True  # takes pair_weights


_masked = partial(family.info_nce, masked=True)
_unmasked = partial(family.info_nce, masked=False)

LOSSES = {
    "info_nce": Loss(mxm.fused_info_nce_loss, _masked, family.paired),
    "info_nce, unmasked": Loss(
        partial(mxm.fused_info_nce_loss, mask_false_negatives=False),
        _unmasked,
        family.paired,
        cancels=True,
    ),
    "hard": Loss(partial(mxm.fused_hard_loss, rounds=None), _masked, family.alike),
    "supcon out": Loss(mxm.fused_supcon_loss, _unmasked, family.alike, cancels=True),
    "supcon in": Loss(
        partial(mxm.fused_supcon_loss, positives="in"),
        family.supcon_in,
        family.alike,
        cancels=True,
        own_weights=False,
    ),
    "decoupled": Loss(mxm.fused_decoupled_loss, family.decoupled, family.paired),
    "debiased": Loss(
        partial(mxm.fused_debiased_loss, positive_prior=0.1),
        partial(family.debiased, prior=0.1),
        family.paired,
        cancels=True,
        needs_scale=True,
    ),
}


@dataclass(frozen=True)
class Choice:
    """Which options a call has; their tensors follow from the case's seed."""

    soft: str = "none"  # "none", "number" or "rows"
    smoothing: float = 0.0
    share: float = 0.5
    row_weights: bool = False
    pair_weights: bool = False
    text_queue: str = "none"  # "none", "negatives" or "folds"
    image_queue: str = "none"
    row_scales: bool = False
    reduction: str = "mean"

    @property
    def plain(self) -> bool:
        """No option is used."""
        return self == Choice()


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    """Any options together."""
    return Choice(
        soft=draw(st.sampled_from(["none", "none", "number", "rows"])),
        smoothing=draw(st.sampled_from([0.0, 0.0, 0.1])),
        share=draw(st.sampled_from([0.5, 0.5, 0.0, 0.25, 1.0])),
        row_weights=draw(st.booleans()),
        pair_weights=draw(st.booleans()),
        text_queue=draw(st.sampled_from(["none", "none", "negatives", "folds"])),
        image_queue=draw(st.sampled_from(["none", "none", "negatives", "folds"])),
        row_scales=draw(st.sampled_from([False, False, True])),
        reduction=draw(st.sampled_from(["mean", "none"])),
    )


class Given:
    """The tensors of a call, in float64, rounded where they are features."""

    def __init__(self, case: Case, choice: Choice, dtype: torch.dtype) -> None:
        self.case, self.choice = case, choice
        g = torch.Generator().manual_seed(case.seed + 7)
        self.x, self.y, self.tx, self.ty = (f.double() for f in case.features(dtype))
        M, N = len(self.x), len(self.y)
        rand = partial(torch.rand, generator=g, dtype=torch.float64)
        self.scales = torch.full((), 1 / case.temperature, dtype=torch.float64)
        self.row_scales = (0.5 + rand(M)) / case.temperature, (0.5 + rand(N)) / case.temperature
        self.soft = rand(M), rand(N)
        self.weights = rand(M) + 0.1, rand(N) + 0.1
        self.pairs = int(group_matrix(*case.ids).sum())
        self.pair_weights = rand(self.pairs), rand(self.pairs)
        self.queues = {}
        for name, rows in (("text_queue", 5), ("image_queue", 3)):
            made = torch.randn(rows, self.x.shape[1], generator=g, dtype=torch.float64)
            pool = torch.tensor(case.image_ids + case.text_ids)
            ids = pool[torch.randint(len(pool), (rows,), generator=g)]
            self.queues[name] = normalize(made, dim=1).to(dtype).double(), ids


def call(loss: Loss, given: Given, dtype: torch.dtype, device: torch.device, backend: str):
    """The fused loss and the leaves that get gradients: x, y, scales."""
    c, case = given.choice, given.case
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def feature(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype, copy=True)

    def number(tensor: Tensor) -> Tensor:
        return tensor.to(device, wide, copy=True)

    x, y = feature(given.x).requires_grad_(), feature(given.y).requires_grad_()
    scale: Any = number(given.scales).requires_grad_()
    leaves = [x, y, scale]
    if c.row_scales:
        scale = tuple(number(s).requires_grad_() for s in given.row_scales)
        leaves = [x, y, *scale]
    options: dict[str, Any] = {
        "label_smoothing": c.smoothing,
        "image_to_text_weight": c.share,
        "reduction": c.reduction,
        "backend": backend,
    }
    if c.soft != "none":
        options["teacher_image_features"] = feature(given.tx)
        options["teacher_text_features"] = feature(given.ty)
        options["soft_weight"] = 0.3 if c.soft == "number" else tuple(map(number, given.soft))
    if c.row_weights:
        options["image_weights"], options["text_weights"] = map(number, given.weights)
    if c.pair_weights and loss.own_weights:
        options["pair_weights"] = tuple(map(number, given.pair_weights))
    for name, own in (("text_queue", case.ids[0]), ("image_queue", case.ids[1])):
        kind, (features, ids) = getattr(c, name), given.queues[name]
        if kind == "negatives":
            options[name] = feature(features)
        elif kind == "folds":
            options[name] = Queue(feature(features), Folds.from_ids(own, ids).to(device))
    value = loss.fused(x, y, case.ids, logit_scale=scale, **options)
    return value, leaves


def dense(loss: Loss, given: Given, dtype: torch.dtype):
    """The same with matrices and masks, all arithmetic in ``dtype``."""
    c, case = given.choice, given.case
    x, y = (f.to(dtype, copy=True).requires_grad_() for f in (given.x, given.y))
    leaves: list[Tensor] = [x, y]
    if c.row_scales:
        scales = tuple(s.to(dtype, copy=True).requires_grad_() for s in given.row_scales)
        leaves += scales
    else:
        one = given.scales.to(dtype, copy=True).requires_grad_()
        scales = one, one
        leaves.append(one)
    same = group_matrix(*case.ids)
    sides = []
    for k, (a, b, ta, tb, queue) in enumerate(
        ((x, y, given.tx, given.ty, "text_queue"), (y, x, given.ty, given.tx, "image_queue"))
    ):
        positives = same if k == 0 else same.T
        negatives = ~positives
        weights = loss.weights(positives)
        if c.pair_weights and loss.own_weights:
            weights = torch.zeros(same.shape, dtype=torch.float64)
            weights[same] = given.pair_weights[k]  # row-major: by image, then by text
            weights = weights if k == 0 else weights.T
        ta, tb = ta.to(dtype), tb.to(dtype)
        if getattr(c, queue) != "none":
            features, ids = given.queues[queue]
            b, tb = torch.cat([b, features.to(dtype)]), torch.cat([tb, features.to(dtype)])
            matches = group_matrix(case.ids[k], ids)
            if getattr(c, queue) == "negatives":
                matches = torch.zeros_like(matches)
            positives = torch.cat([positives, torch.zeros_like(matches)], 1)
            negatives = torch.cat([negatives, ~matches], 1)
            weights = torch.cat([weights, torch.zeros(matches.shape)], 1)
        scale = scales[k] if scales[k].ndim == 0 else scales[k][:, None]
        S, T = scale * (a @ b.T), scale.detach() * (ta @ tb.T)
        extra = {"scale": scales[k]} if loss.needs_scale else {}
        hard = loss.dense(S, positives, negatives, weights.to(dtype), c.smoothing, **extra)
        soft = soft_rows(S, T) if c.soft != "none" else torch.zeros_like(hard)
        share = {"none": 0.0, "number": 0.3, "rows": given.soft[k].to(dtype)}[c.soft]
        rows = given.weights[k].to(dtype) if c.row_weights else None
        sides.append((hard, soft, share, positives.any(1), rows))
    return _reduced(c, sides), leaves


def _reduced(c: Choice, sides: list) -> Any:
    results = []
    for hard, soft, share, counted, rows in sides:
        if c.reduction == "none":
            mixed = (1 - share) * hard + share * soft
            results.append(mixed if rows is None else rows * mixed)
        else:
            every = torch.ones_like(counted)
            results.append(
                family.mean((1 - share) * hard, counted, rows)
                + family.mean(share * soft, every, rows)
            )
    if c.reduction == "none":
        return tuple(results)
    return c.share * results[0] + (1 - c.share) * results[1]
