"""A call of a public loss with any of its options: the tensors of the call, and what it gives."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

import mxm_kernels as mxm
from mxm_kernels import Diagnostics, Folds, Queue, draw_selection
from mxm_kernels.backends.draws import draw_places
from mxm_kernels.backends.row_interface import Draw
from reference.mfh import group_matrix
from tests.support.cases import Case
from tests.support.family import BIAS, ROUNDS, SOFT_SHARE, Loss
from tests.support.rules import MARGIN, Rules

SHARES = {"none": 0.0, "number": 0.3, "one": 1.0}  # of the soft loss


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
        self.queue_teachers = {}
        for name, (features, _) in self.queues.items():
            made = torch.randn(features.shape, generator=g, dtype=torch.float64)
            self.queue_teachers[name] = normalize(made, dim=1).to(dtype).double()
        self.rules = Rules(case, {name: len(ids) for name, (_, ids) in self.queues.items()})

    def has_queue_teacher(self, name: str) -> bool:
        """Whether a queue comes with the teacher's features of its rows."""
        return getattr(self.choice, name) == "folds" and self.choice.filter_margin is not None

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
        columns = torch.cat([others.nonzero()[:, 1], places.new_full((1,), -1)])
        return _frequencies(columns[places], len(others))  # place -1, of none, is the last column

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
    if loss.function is mxm.fused_mfh_loss and loss.reads_teacher(c):
        options["hard_weight"] = 1 - options.pop("soft_weight", 0)
    told, learned = _rules_of(given, number, device)
    options |= told
    leaves += learned
    for name, weights in zip(("image_weights", "text_weights"), given.weights, strict=True):
        if getattr(c, name):
            options[name] = number(weights)
    if c.pair_weights:
        options["pair_weights"] = tuple(map(number, given.pair_weights))
    for name, own in (("text_queue", case.ids[0]), ("image_queue", case.ids[1])):
        kind, (features, ids) = getattr(c, name), given.queues[name]
        if kind == "none":
            continue
        folds = Folds.from_ids(own, ids).to(device) if kind == "folds" else None
        more = _of_queue(given, name, number, feature, device)
        plain = feature(features)
        options[name] = Queue(plain, folds, **more) if more or folds is not None else plain
    seen = Diagnostics()
    if c.diagnostics:
        options["diagnostics"] = seen
    if loss.one_modality:
        value = loss.fused(x, case.ids[0], **_of_one_modality(options))
        return Made(value, [x, *leaves[2:]], {})
    of_rows = () if "folds" in loss.function.not_taken else (case.ids,)
    return Made(loss.fused(x, y, *of_rows, **options), leaves, seen.numbers())


def _rules_of(
    given: Given, number: Any, device: torch.device
) -> tuple[dict[str, Any], list[Tensor]]:
    """The options that say something of pairs, and those that want a gradient."""
    c, rules, sides = given.choice, given.rules, ("images", "texts")
    options: dict[str, Any] = {}
    learned = []
    for name, side in zip(("image_offsets", "text_offsets"), sides, strict=True):
        if c.image_offsets == "both" or (c.image_offsets == "one side" and side == "images"):
            options[name] = number(rules.offsets[side]).requires_grad_()
            learned.append(options[name])
        if c.teacher_image_offsets:
            options[f"teacher_{name}"] = number(rules.teacher_offsets[side])
    for name in ("exclude_ids", "within_ids"):
        if getattr(c, name):
            options[name] = tuple(getattr(rules, name)[side].to(device) for side in sides)
    if c.filter_margin == "thresholds":
        options["filter_thresholds"] = tuple(number(rules.thresholds[side]) for side in sides)
    elif c.filter_margin is not None:
        options |= {"filter_margin": MARGIN, "filter_strategy": c.filter_margin}
    return options, learned


def _of_queue(
    given: Given, name: str, number: Any, feature: Any, device: torch.device
) -> dict[str, Any]:
    """What a queue says beside its features and folds."""
    c, rules, made = given.choice, given.rules, {}
    if c.image_offsets == "both":
        made["offsets"] = number(rules.offsets[name])
    for field in ("exclude_ids", "within_ids"):
        if getattr(c, field):
            made[field] = getattr(rules, field)[name].to(device)
    if given.has_queue_teacher(name):
        made["teacher_features"] = feature(given.queue_teachers[name])
    return made


# Options whose values in ``OPTIONS`` are what a call takes.
_AS_THEY_ARE = "image_to_text_weight", "label_smoothing", "reduction", "teacher_dtype"


def _of_one_modality(options: dict[str, Any]) -> dict[str, Any]:
    """The same options under the names that they have there."""
    for name in ("teacher_text_features", "text_offsets", "teacher_text_offsets"):
        options.pop(name, None)
    renamed = {
        "teacher_image_features": "teacher_features",
        "image_weights": "row_weights",
        "image_offsets": "offsets",
        "teacher_image_offsets": "teacher_offsets",
    }
    for name in ("exclude_ids", "within_ids", "filter_thresholds"):
        if name in options:
            options[name] = options[name][0]
    return {renamed.get(name, name): value for name, value in options.items()}
