"""The public losses: each fused function beside its dense form, with any of its options.

An option is declared in ``support.options``; here is what it means to a call and to the matrices.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

import mxm_kernels as mxm
from mxm_kernels import Diagnostics, Folds, Queue, draw_selection
from mxm_kernels.backends.draws import draw_places
from mxm_kernels.backends.interface import Draw
from reference import family
from reference.mfh import group_matrix, soft_rows
from reference.siglip import siglip_rows
from tests.support.cases import Case, in_float8
from tests.support.options import OF_TEACHER, OPTIONS, Choice

Rows = Callable[..., Tensor]  # (S, positives, negatives, weights[, smoothing]) -> (rows,)
ROUNDS, SOFT_SHARE, PRIOR = 3, 0.4, 0.1
SHARES = {"none": 0.0, "number": 0.3, "one": 1.0}
BIAS = -5.0
FLOAT8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Loss:
    """One loss: the function under test and its dense rows."""

    fused: Callable[..., Any]
    dense: Rows
    weights: Callable[[Tensor], Tensor] = family.paired  # of the positives, from the group matrix
    needs: frozenset[str] = frozenset()  # of "scale" and "bias", what the rows are a function of
    own_weights: bool = True  # takes pair_weights
    drawn: str = ""  # "positives" or "selection" (ROUNDS of them), or "rows" (SOFT_SHARE of them)
    pairs: bool = True  # knows positives; else dense is (S, T, <a, b>) -> (rows,), over all columns
    one_modality: bool = False
    every_row: bool = False  # rows without a positive count
    two_ways: bool = False  # the features go to the loss beside S too
    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # other than in OPTIONS

    @property
    def function(self) -> Any:
        """The public function."""
        return self.fused.func if isinstance(self.fused, partial) else self.fused

    @property
    def options(self) -> dict[str, tuple[Any, ...]]:
        """Name and values of every option that it takes."""
        if self.one_modality:
            return dict(self.values)
        refused = set(self.function.not_taken) - set(self.values)
        if not self.own_weights:
            refused.add("pair_weights")
        return {n: self.values.get(n, v) for n, v in OPTIONS.items() if n not in refused}

    def taken(self, choice: Any) -> Any:
        """What of a choice it takes; the rest is plain."""
        options, plain = self.options, Choice()
        values = {
            name: getattr(choice, name)
            for name, allowed in options.items()
            if getattr(choice, name) in allowed
        }
        made = Choice(**values)
        if self.reads_teacher(made):
            return made
        return replace(made, **{name: getattr(plain, name) for name in OF_TEACHER})

    def reads_teacher(self, choice: Any) -> bool:
        """Whether teacher features are given."""
        return choice.soft_weight != "none" or not self.pairs


def _soft(S: Tensor, T: Tensor, cosines: Tensor) -> Tensor:
    return soft_rows(S, T)


def _continuously_weighted(S: Tensor, T: Tensor, cosines: Tensor) -> Tensor:
    return family.continuously_weighted(S, cosines)


_masked = partial(family.info_nce, masked=True)
_unmasked = partial(family.info_nce, masked=False)
_TAUGHT = {"soft_weight": ("none", "number")}  # what brings a teacher where it has no share
_INTRA_MODAL = {
    "soft_weight": ("none", "number", "one"),
    "teacher_logit_scale": OPTIONS["teacher_logit_scale"],
    "image_weights": OPTIONS["image_weights"],  # row_weights there
    "reduction": OPTIONS["reduction"],
}
_intra_modal = partial(Loss, one_modality=True, weights=family.alike, values=_INTRA_MODAL)

LOSSES = {
    "mfh": Loss(
        partial(mxm.fused_mfh_loss, rounds=None),
        _masked,
        family.alike,
        values={"soft_weight": ("none", "number", "one")},  # hard_weight there
    ),
    "mfh, selected": Loss(
        mxm.fused_mfh_loss, _masked, drawn="selection", own_weights=False, values=_TAUGHT
    ),
    "hard": Loss(partial(mxm.fused_hard_loss, rounds=None), _masked, family.alike),
    "hard, drawn": Loss(partial(mxm.fused_hard_loss, rounds=ROUNDS), _masked, drawn="positives"),
    "soft": Loss(mxm.fused_soft_loss, _soft, own_weights=False, pairs=False, every_row=True),
    "info_nce": Loss(mxm.fused_info_nce_loss, _masked),
    "info_nce, unmasked": Loss(
        partial(mxm.fused_info_nce_loss, mask_false_negatives=False), _unmasked
    ),
    "supcon out": Loss(mxm.fused_supcon_loss, _unmasked, family.alike),
    "supcon in": Loss(
        partial(mxm.fused_supcon_loss, positives="in"),
        family.supcon_in,
        family.alike,
        own_weights=False,
    ),
    "decoupled": Loss(mxm.fused_decoupled_loss, family.decoupled),
    "debiased": Loss(
        partial(mxm.fused_debiased_loss, positive_prior=PRIOR),
        partial(family.debiased, prior=PRIOR),
        needs=frozenset({"scale"}),
    ),
    "self distillation": Loss(
        partial(mxm.fused_self_distillation_loss, soft_share=SOFT_SHARE),
        _masked,
        drawn="rows",
        values=_TAUGHT,
    ),
    "siglip": Loss(
        mxm.fused_siglip_loss,
        siglip_rows,
        lambda positives: positives.double(),
        needs=frozenset({"bias"}),
        every_row=True,
    ),
    "cwcl": Loss(
        mxm.fused_cwcl_loss,
        _continuously_weighted,
        own_weights=False,
        pairs=False,
        every_row=True,
        two_ways=True,
    ),
    "intra-modal": _intra_modal(mxm.fused_intra_modal_loss, _masked),
    "intra-modal, unmasked": _intra_modal(
        partial(mxm.fused_intra_modal_loss, mask_positives=False), _unmasked
    ),
    "intra-modal, drawn": _intra_modal(
        partial(mxm.fused_intra_modal_loss, rounds=ROUNDS), _masked, drawn="positives"
    ),
}


class Made(NamedTuple):
    """What a call gives."""

    value: Any  # a tensor or a pair of them
    leaves: list[Tensor]  # features, scales and bias, which get gradients
    diagnostics: dict[str, float]  # empty where none were asked for


class Given:
    """The tensors of a call, in float64, rounded where they are features."""

    def __init__(self, case: Case, choice: Any, dtype: torch.dtype) -> None:
        self.case, self.choice, self.dtype = case, choice, dtype
        g = torch.Generator().manual_seed(case.seed + 7)
        self.x, self.y, self.tx, self.ty = (f.double() for f in case.features(dtype))
        M, N = len(self.x), len(self.y)
        rand = partial(torch.rand, generator=g, dtype=torch.float64)
        self.scale = torch.full((), 1 / case.temperature, dtype=torch.float64)
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

    @property
    def teacher_scale(self) -> float | None:
        """The teacher's own scale."""
        return 0.7 / self.case.temperature if self.choice.teacher_logit_scale else None

    def generator(self) -> torch.Generator:
        """Of what the loss draws."""
        return torch.Generator().manual_seed(self.case.seed)

    def selection(self) -> tuple[Tensor, Tensor]:
        """ROUNDS drawn positives of every row."""
        return draw_selection(
            self.case.ids, self.x, self.y, rounds=ROUNDS, generator=self.generator()
        )

    def drawn_weights(self, side: int) -> Tensor:
        """How often each positive of a row is drawn, of ROUNDS."""
        return _frequencies(self.selection()[side], (len(self.y), len(self.x))[side])

    def drawn_within(self, others: Tensor) -> Tensor:
        """The same of the other rows of an instance, in one modality."""
        counts = others.sum(1)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        seed = torch.empty((), dtype=torch.int64).random_(generator=self.generator())
        places = draw_places(Draw(seed, offsets, ROUNDS, int(offsets[-1])))
        columns = others.nonzero()[:, 1]
        chosen = torch.where(places < 0, -1, columns[places.clamp(min=0)])
        return _frequencies(chosen, len(others))

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


def _frequencies(drawn: Tensor, columns: int) -> Tensor:
    """(rounds, rows) drawn columns, -1 for none -> (rows, columns) how often each was."""
    weights = torch.zeros(drawn.shape[1], columns, dtype=torch.float64)
    for row, chosen in enumerate(drawn.T):
        for column in chosen[chosen >= 0]:
            weights[row, column] += 1 / len(chosen)
    return weights


def call(loss: Loss, given: Given, dtype: torch.dtype, device: torch.device, backend: str) -> Made:
    """The fused loss."""
    c, case = given.choice, given.case
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def feature(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype, copy=True)

    def number(tensor: Tensor) -> Tensor:
        return tensor.to(device, wide, copy=True)

    x, y = feature(given.x).requires_grad_(), feature(given.y).requires_grad_()
    scale: Any = number(given.scale).requires_grad_()
    leaves = [x, y, scale]
    if c.logit_scale == "rows":
        scale = tuple(number(s).requires_grad_() for s in given.row_scales)
        leaves = [x, y, *scale]
    options = {name: getattr(c, name) for name in _AS_THEY_ARE if name in loss.options}
    options |= {"logit_scale": scale, "backend": backend}
    if "bias" in loss.needs:
        options["logit_bias"] = number(torch.tensor(BIAS)).requires_grad_()
        leaves.append(options["logit_bias"])
    if loss.drawn in ("positives", "rows"):
        options["generator"] = given.generator()
    if loss.drawn == "selection":
        options["selection"] = tuple(side.to(device) for side in given.selection())
    if loss.reads_teacher(c):
        options["teacher_image_features"] = feature(given.tx)
        options["teacher_text_features"] = feature(given.ty)
    if given.teacher_scale is not None:
        options["teacher_logit_scale"] = given.teacher_scale
    if loss.pairs and loss.drawn != "rows" and c.soft_weight != "none":
        share = SHARES.get(c.soft_weight)
        options["soft_weight"] = tuple(map(number, given.soft)) if share is None else share
    if loss.function is mxm.fused_mfh_loss and "soft_weight" in options:
        options["hard_weight"] = 1 - options.pop("soft_weight")
    for name, weights in zip(("image_weights", "text_weights"), given.weights, strict=True):
        if getattr(c, name):
            options[name] = number(weights)
    if c.pair_weights:
        options["pair_weights"] = tuple(map(number, given.pair_weights))
    for name, own in (("text_queue", case.ids[0]), ("image_queue", case.ids[1])):
        kind, (features, ids) = getattr(c, name), given.queues[name]
        if kind == "negatives":
            options[name] = feature(features)
        elif kind == "folds":
            options[name] = Queue(feature(features), Folds.from_ids(own, ids).to(device))
    seen = Diagnostics()
    if c.diagnostics:
        options["diagnostics"] = seen
    if loss.one_modality:
        value = loss.fused(x, case.ids[0], **_of_one_modality(options))
        return Made(value, [x, *leaves[2:]], {})
    folds = () if "folds" in loss.function.not_taken else (case.ids,)
    return Made(loss.fused(x, y, *folds, **options), leaves, seen.numbers())


# Options whose values in ``OPTIONS`` are what a call takes.
_AS_THEY_ARE = "image_to_text_weight", "label_smoothing", "reduction", "teacher_dtype"


def _of_one_modality(options: dict[str, Any]) -> dict[str, Any]:
    """The same options under the names that they have there."""
    options.pop("teacher_text_features", None)
    renamed = {"teacher_image_features": "teacher_features", "image_weights": "row_weights"}
    return {renamed.get(name, name): value for name, value in options.items()}


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
    if loss.one_modality:
        side = _within(loss, given, x, scales[0], given.tx.to(dtype))
        value = _mixed(side) if c.reduction == "none" else _mean(side)
        return Made(value, [x, *leaves[2:]], {})
    tx, ty = given.tx.to(dtype), given.ty.to(dtype)
    if loss.drawn == "rows" and not loss.reads_teacher(c):
        tx, ty = x.detach(), y.detach()
    sides = [
        _side(loss, given, 0, (x, y, tx, ty), scales[0], extra),
        _side(loss, given, 1, (y, x, ty, tx), scales[1], extra),
    ]
    seen = _diagnosed(sides, loss) if c.diagnostics else {}
    if c.reduction == "none":
        return Made(tuple(map(_mixed, sides)), leaves, seen)
    share = c.image_to_text_weight
    return Made(share * _mean(sides[0]) + (1 - share) * _mean(sides[1]), leaves, seen)


def _side(
    loss: Loss,
    given: Given,
    k: int,
    features: tuple[Tensor, ...],
    scale: Tensor,
    extra: dict[str, Any],
) -> Side:
    """One direction; ``features`` are x and y, and the teacher's."""
    c, case, (a, b, ta, tb) = given.choice, given.case, features
    dtype, queue = a.dtype, ("text_queue", "image_queue")[k]
    positives = group_matrix(*case.ids) if k == 0 else group_matrix(*case.ids).T
    if "folds" in loss.function.not_taken:
        positives = torch.zeros_like(positives)
    weights = _weights(loss, given, positives, k)
    negatives, columns = ~positives, [tb]
    if getattr(c, queue) != "none":
        queued, ids = given.queues[queue]
        b, columns = torch.cat([b, queued.to(dtype)]), [tb, queued.to(dtype)]
        matches = group_matrix(case.ids[k], ids)
        if getattr(c, queue) == "negatives":
            matches = torch.zeros_like(matches)
        positives = torch.cat([positives, torch.zeros_like(matches)], 1)
        negatives = torch.cat([negatives, ~matches], 1)
        weights = torch.cat([weights, torch.zeros(matches.shape)], 1)
    S = _logits(given, scale[:, None] if scale.ndim else scale, a, b)
    own = scale.detach() if given.teacher_scale is None else torch.tensor(given.teacher_scale)
    T = _targets(given, own.to(dtype), ta, columns)
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


def _within(loss: Loss, given: Given, x: Tensor, scale: Tensor, teacher: Tensor) -> Side:
    """The rows of one modality, in which a row itself takes no part."""
    c, dtype = given.choice, x.dtype
    same = group_matrix(given.case.ids[0], given.case.ids[0])
    itself = torch.eye(len(x), dtype=torch.bool)
    others = same & ~itself
    weights = given.drawn_within(others) if loss.drawn else loss.weights(others)
    S = scale * x @ x.T
    own = scale.detach() if given.teacher_scale is None else given.teacher_scale
    T = own * teacher @ teacher.T
    hard = loss.dense(S, others, ~same, weights.to(dtype))
    soft = family.soft(S, T, ~itself)
    row_weights = given.weights[0].to(dtype) if c.image_weights else None
    share = SHARES[c.soft_weight]
    return Side(hard, soft, share, others.any(1), row_weights, S, T, scale, others, ~same)


def _weighed(c: Any, side: int) -> bool:
    return bool((c.image_weights, c.text_weights)[side])


def _logits(given: Given, scale: float | Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``scale * a b^T``; scales of rows stand in 16-bit features, multiplied in float32."""
    if given.dtype.itemsize > 2 or given.choice.logit_scale != "rows":
        return scale * (a @ b.T)
    exact, number = scale * a, scale.detach().float() if isinstance(scale, Tensor) else scale
    rounded = (number * a.detach().float()).to(given.dtype).to(exact)
    return (exact + (rounded - exact).detach()) @ b.T


def _targets(given: Given, scale: Tensor, a: Tensor, columns: list[Tensor]) -> Tensor:
    """The teacher's similarities, of features that may be in float8, matrix by matrix."""
    if given.choice.logit_scale == "rows":  # whose features carry it
        wide = torch.float64 if given.dtype == torch.float64 else torch.float32
        numbers = scale.to(wide)[:, None] if scale.ndim else scale.to(wide)
        a, scale = (numbers * a.to(wide)).to(given.dtype).to(a), torch.ones_like(a[0, 0])
    if given.choice.teacher_dtype is not None:
        a, columns = in_float8(a), [in_float8(b) for b in columns]
    return (scale * (a @ torch.cat(columns).T)).detach()


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
        if isinstance(side.share, Tensor) or side.share or loss.dense is _soft:
            found[f"{name}_teacher_entropy"] = float(
                torch.special.entr(side.T.softmax(1)).sum(1).mean()
            )
        cosines.append((S / (scale[:, None] if scale.ndim else scale))[side.positives])
    if cosines and len(cosines[0]):
        found["positive_similarity"] = float(torch.cat(cosines).mean())
    return found


def keyword_arguments(function: Callable[..., Any]) -> set[str]:
    """Names of the arguments that are its own, and not options of all losses."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
