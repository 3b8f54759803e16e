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
from mxm_kernels import Folds, Queue, draw_selection
from reference import family
from reference.mfh import group_matrix, soft_rows
from tests.support.cases import Case

Rows = Callable[..., Tensor]  # (S, positives, negatives, weights, smoothing) -> (rows,)
ROUNDS, SOFT_SHARE = 3, 0.4


@dataclass(frozen=True)
class Loss:
    """One loss: the function under test and its dense rows."""

    fused: Callable[..., Any]
    dense: Rows
    weights: Callable[[Tensor], Tensor] = family.paired  # of the positives, from the group matrix
    needs_scale: bool = False
    own_weights: bool = True  # takes pair_weights
    drawn: str = ""  # "positives" (ROUNDS of them) or "rows" (SOFT_SHARE get the soft loss)
    pairs: bool = True  # knows positives; else dense is (S, T, <a, b>) -> (rows,), over all columns
    queues: bool = True
    two_ways: bool = False  # the features go to the loss beside S too


def _soft(S: Tensor, T: Tensor, cosines: Tensor) -> Tensor:
    return soft_rows(S, T)


def _continuously_weighted(S: Tensor, T: Tensor, cosines: Tensor) -> Tensor:
    return family.continuously_weighted(S, cosines)


def _without_folds(x: Tensor, y: Tensor, folds: object, **options: Any) -> Any:
    return mxm.fused_cwcl_loss(x, y, **options)


_masked = partial(family.info_nce, masked=True)
_unmasked = partial(family.info_nce, masked=False)

LOSSES = {
    "info_nce": Loss(mxm.fused_info_nce_loss, _masked),
    "info_nce, unmasked": Loss(
        partial(mxm.fused_info_nce_loss, mask_false_negatives=False),
        _unmasked,
    ),
    "hard": Loss(partial(mxm.fused_hard_loss, rounds=None), _masked, family.alike),
    "hard, drawn": Loss(partial(mxm.fused_hard_loss, rounds=ROUNDS), _masked, drawn="positives"),
    "supcon out": Loss(mxm.fused_supcon_loss, _unmasked, family.alike),
    "supcon in": Loss(
        partial(mxm.fused_supcon_loss, positives="in"),
        family.supcon_in,
        family.alike,
        own_weights=False,
    ),
    "decoupled": Loss(mxm.fused_decoupled_loss, family.decoupled),
    "debiased": Loss(
        partial(mxm.fused_debiased_loss, positive_prior=0.1),
        partial(family.debiased, prior=0.1),
        needs_scale=True,
    ),
    "self distillation": Loss(
        partial(mxm.fused_self_distillation_loss, soft_share=SOFT_SHARE), _masked, drawn="rows"
    ),
    "soft": Loss(mxm.fused_soft_loss, _soft, own_weights=False, pairs=False),
    "cwcl": Loss(
        _without_folds,
        _continuously_weighted,
        own_weights=False,
        pairs=False,
        queues=False,
        two_ways=True,
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
    teacher_scale: bool = False
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
        teacher_scale=draw(st.booleans()),
        reduction=draw(st.sampled_from(["mean", "none"])),
    )


class Given:
    """The tensors of a call, in float64, rounded where they are features."""

    def __init__(self, case: Case, choice: Choice, dtype: torch.dtype) -> None:
        self.case, self.choice, self.dtype = case, choice, dtype
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

    def generator(self) -> torch.Generator:
        """Of what the loss draws."""
        return torch.Generator().manual_seed(self.case.seed)

    def drawn_weights(self, side: int) -> Tensor:
        """How often each positive of a row is drawn, of ROUNDS."""
        drawn = draw_selection(
            self.case.ids, self.x, self.y, rounds=ROUNDS, generator=self.generator()
        )[side]
        sides = (len(self.x), len(self.y)) if side == 0 else (len(self.y), len(self.x))
        weights = torch.zeros(sides, dtype=torch.float64)
        for columns in drawn:
            rows = torch.nonzero(columns >= 0).flatten()
            weights[rows, columns[rows]] += 1 / ROUNDS
        return weights

    def soft_rows(self) -> list[Tensor]:
        """Which rows of either side get the soft loss."""
        lengths = len(self.x), len(self.y)
        numbers = torch.empty(sum(lengths), dtype=torch.int32).random_(generator=self.generator())
        sides = []
        for of_side in numbers.split(lengths):
            chosen = torch.zeros(len(of_side), dtype=torch.float64)
            chosen[of_side.argsort()[: round(SOFT_SHARE * len(of_side))]] = 1
            sides.append(chosen)
        return sides

    @property
    def reads_teacher_scale(self) -> bool:
        """The scale goes with a teacher."""
        return self.choice.teacher_scale and self.choice.soft != "none"


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
        "image_to_text_weight": c.share,
        "reduction": c.reduction,
        "backend": backend,
    }
    if loss.pairs:
        options["label_smoothing"] = c.smoothing
    if loss.drawn:
        options["generator"] = given.generator()
    if c.soft != "none" or not loss.pairs:
        options["teacher_image_features"] = feature(given.tx)
        options["teacher_text_features"] = feature(given.ty)
    if loss.pairs and loss.drawn != "rows" and c.soft != "none":
        options["soft_weight"] = 0.3 if c.soft == "number" else tuple(map(number, given.soft))
    if given.reads_teacher_scale and loss.queues:
        options["teacher_logit_scale"] = 0.7 / case.temperature
    if c.row_weights:
        options["image_weights"], options["text_weights"] = map(number, given.weights)
    if c.pair_weights and loss.own_weights:
        options["pair_weights"] = tuple(map(number, given.pair_weights))
    for name, own in (("text_queue", case.ids[0]), ("image_queue", case.ids[1])):
        if not loss.queues:
            break
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
    tx, ty = given.tx.to(dtype), given.ty.to(dtype)
    if loss.drawn == "rows" and c.soft == "none":
        tx, ty = x.detach(), y.detach()
    same = group_matrix(*case.ids)
    sides = []
    for k, (a, b, ta, tb, queue) in enumerate(
        ((x, y, tx, ty, "text_queue"), (y, x, ty, tx, "image_queue"))
    ):
        positives = same if k == 0 else same.T
        negatives = ~positives
        weights = _weights(loss, given, positives, k)
        if loss.queues and getattr(c, queue) != "none":
            features, ids = given.queues[queue]
            b, tb = torch.cat([b, features.to(dtype)]), torch.cat([tb, features.to(dtype)])
            matches = group_matrix(case.ids[k], ids)
            if getattr(c, queue) == "negatives":
                matches = torch.zeros_like(matches)
            positives = torch.cat([positives, torch.zeros_like(matches)], 1)
            negatives = torch.cat([negatives, ~matches], 1)
            weights = torch.cat([weights, torch.zeros(matches.shape)], 1)
        scale = scales[k] if scales[k].ndim == 0 else scales[k][:, None]
        teacher_scale = 0.7 / case.temperature if given.reads_teacher_scale else scale.detach()
        S = _logits(given, scale, a, b)
        T = _logits(given, teacher_scale, ta, tb)
        rows = given.weights[k].to(dtype) if c.row_weights else None
        if not loss.pairs:
            every = torch.ones(len(S), dtype=torch.bool)
            losses = loss.dense(S, T, ta @ tb.T)
            sides.append((losses, torch.zeros_like(losses), 0.0, every, rows))
            continue
        extra = {"scale": scales[k]} if loss.needs_scale else {}
        hard = loss.dense(S, positives, negatives, weights.to(dtype), c.smoothing, **extra)
        share = _share(loss, given, k, dtype)
        soft = torch.zeros_like(hard) if share is None else soft_rows(S, T)
        share = 0.0 if share is None else share
        sides.append((hard, soft, share, positives.any(1), rows))
    return _reduced(c, sides), leaves


def _logits(given: Given, scale: float | Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``scale * a b^T``; scales of rows stand in 16-bit features, multiplied in float32."""
    if given.dtype.itemsize > 2 or not given.choice.row_scales:
        return scale * (a @ b.T)
    exact, number = scale * a, scale.detach().float() if isinstance(scale, Tensor) else scale
    rounded = (number * a.detach().float()).to(given.dtype).to(exact)
    return (exact + (rounded - exact).detach()) @ b.T


def _weights(loss: Loss, given: Given, positives: Tensor, side: int) -> Tensor:
    """Of the positive pairs, in one direction."""
    if given.choice.pair_weights and loss.own_weights:
        same = positives if side == 0 else positives.T
        weights = torch.zeros(same.shape, dtype=torch.float64)
        weights[same] = given.pair_weights[side]  # row-major: by image, then by text
        return weights if side == 0 else weights.T
    if loss.drawn == "positives":
        return given.drawn_weights(side)
    return loss.weights(positives)


def _share(loss: Loss, given: Given, side: int, dtype: torch.dtype) -> float | Tensor | None:
    """Of the soft loss: a number, or one for each row."""
    if loss.drawn == "rows":
        return given.soft_rows()[side].to(dtype)
    kinds = {"none": None, "number": 0.3, "rows": given.soft[side].to(dtype)}
    return kinds[given.choice.soft]


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
