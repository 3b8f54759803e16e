"""A check of every backend on this machine against a dense computation in float64.

It takes seconds, needs nothing besides the package, and is no test suite: values and gradients of
the MFH loss, with and without a teacher, with offsets, ids and a filter, and of the sigmoid loss,
which together run every part of a backend, on batches of ragged groups. The dense computations
below are written from the definitions of MXM-CLR (arXiv 2303.10839, equations 5 to 9) and SigLIP
(arXiv 2303.15343) and share no code with the backends.

An error is ||got - expected|| / ||expected||. It may be 1e-10 for float64 features, 1e-5 for
float32 and one unit of the dtype's precision for 16 bits; on the small batches twice the error of
the dense computation in the features' dtype where that is more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, softplus

from mxm_kernels.folds import Folds
from mxm_kernels.losses import draw_selection, fused_mfh_loss
from mxm_kernels.ops.sigmoid_statistics import sigmoid_statistics

PARTS = ("loss", "image gradient", "text gradient", "scale gradient", "bias gradient")
_BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}
_DIMENSION, _TEMPERATURE, _HARD_WEIGHT, _BIAS, _MARGIN = 24, 0.1, 0.6, -2.0, 0.05


@dataclass(frozen=True)
class _Batch:
    name: str
    images: int
    texts: int
    instances: int
    teacher: bool = False
    rounds: int | None = None
    sigmoid: bool = False
    told: bool = False  # with offsets, ids and a filter


_BATCHES = (
    _Batch("with a teacher, 10 rounds", 41, 37, 9, teacher=True, rounds=10),
    _Batch("with a teacher, expectation", 18, 35, 6, teacher=True),
    _Batch("without a teacher, expectation", 37, 20, 20),
    _Batch("sigmoid", 29, 34, 7, sigmoid=True),
    _Batch("with offsets, ids and a filter", 33, 38, 8, teacher=True, told=True),
)
# More than a tile of every backend and work for several threads: 1.1 million similarities, which
# take Triton's interpreter minutes and a CPU seconds in dense 16-bit arithmetic.
_WIDE = _Batch("several tiles, with a teacher", 140, 8200, 71, teacher=True)


@dataclass(frozen=True)
class Outcome:
    """The result of the self-check of one backend on one batch."""

    backend: str
    device: str
    dtype: str
    batch: str
    errors: dict[str, float]  # relative error of every part
    bounds: dict[str, float]
    failure: str | None  # why it counts as failed
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every part is within its bound."""
        return self.failure is None

    def as_dict(self) -> dict:
        """A dictionary for JSON; an infinite error is None, since JSON has no infinity."""
        errors = {name: e if e < float("inf") else None for name, e in self.errors.items()}
        return {**asdict(self), "errors": errors, "passed": self.passed}


def run(candidates: Iterable[tuple[str, torch.device, torch.dtype]]) -> list[Outcome]:
    """Check every (backend, device, dtype); all of them can run here."""
    outcomes = []
    for name, device, dtype in candidates:
        interpreted = name == "triton" and device.type == "cpu"
        for batch in _BATCHES if interpreted else (*_BATCHES, _WIDE):
            outcomes.append(_check(name, device, dtype, batch))
    return outcomes


def _check(backend: str, device: torch.device, dtype: torch.dtype, batch: _Batch) -> Outcome:
    started = time.perf_counter()
    features, ids = _features(batch, dtype), _ids(batch)
    selection = _selection(batch, features, ids)
    expected, bounds = _expected(batch, dtype)
    errors: dict[str, float] = {}
    try:
        got = _fused(batch, [f.to(device) for f in features], ids, selection, backend)
    except Exception as error:
        failure: str | None = f"{type(error).__name__}: {error}"
    else:
        errors = {p: _error(g, e) for p, g, e in zip(bounds, got, expected, strict=True)}
        wrong = [
            f"{part}: error {errors[part]:.2g}, allowed {bounds[part]:.2g}"
            for part in bounds
            if not errors[part] <= bounds[part]
        ]
        failure = "; ".join(wrong) or None
    kind = str(dtype).removeprefix("torch.")
    seconds = time.perf_counter() - started
    return Outcome(backend, str(device), kind, batch.name, errors, bounds, failure, seconds)


@cache
def _expected(batch: _Batch, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, float]]:
    """Loss and gradients in float64 for features of ``dtype``, and the errors allowed."""
    features, ids = _features(batch, dtype), _ids(batch)
    selection = _selection(batch, features, ids)
    expected = _dense(batch, [f.double() for f in features], ids, selection)
    bound, parts = _BOUNDS.get(dtype, torch.finfo(dtype).eps), PARTS[: len(expected)]
    if dtype == torch.float64 or batch == _WIDE:
        return expected, dict.fromkeys(parts, bound)
    naive = _dense(batch, features, ids, selection)
    errors = map(_error, naive, expected)
    return expected, {part: max(bound, 2 * e) for part, e in zip(parts, errors, strict=True)}


def _error(got: Tensor, expected: Tensor) -> float:
    """||got - expected|| / ||expected||; infinite if a number is not finite."""
    got = got.detach().cpu().double()
    if got.shape != expected.shape or not bool(torch.isfinite(got).all()):
        return float("inf")
    return float((got - expected).norm() / expected.norm())


def _features(batch: _Batch, dtype: torch.dtype) -> list[Tensor]:
    """Image and text features of student and teacher: (M, D), (N, D) twice, on the CPU."""
    generator = torch.Generator().manual_seed(batch.images)
    rows = (batch.images, batch.texts) * 2
    made = [
        torch.randn(n, _DIMENSION, generator=generator, dtype=torch.float64, device="cpu")
        for n in rows
    ]
    return [normalize(f, dim=1).to(dtype) for f in made]


def _ids(batch: _Batch) -> tuple[Tensor, Tensor]:
    """Instances of the rows, out of order; some texts have no image."""
    images = torch.arange(batch.images, device="cpu") * 3 % batch.instances
    texts = torch.arange(batch.texts, device="cpu") * 5 % (batch.instances + 1)
    return images, texts


def _rules(x: Tensor, y: Tensor) -> dict[str, Any]:
    """Offsets and ids of the rows, and a margin."""
    images, texts = (torch.arange(len(f), device=x.device) for f in (x, y))
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return {
        "image_offsets": images.to(wide).cos(),
        "text_offsets": texts.to(wide).sin(),
        "exclude_ids": (images % 5, texts % 7),
        "within_ids": (images % 4 - 1, texts % 3 - 1),
        "filter_margin": _MARGIN,
    }


def _selection(batch: _Batch, features: list[Tensor], ids: tuple[Tensor, Tensor]):
    if batch.rounds is None:
        return None
    generator = torch.Generator().manual_seed(batch.texts)
    return draw_selection(ids, *features[:2], rounds=batch.rounds, generator=generator)


def _fused(batch: _Batch, features: list[Tensor], ids, selection, backend: str) -> list[Tensor]:
    x, y, teacher_x, teacher_y = features
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale = torch.tensor(1 / _TEMPERATURE, dtype=wide, device=x.device, requires_grad=True)
    if batch.sigmoid:
        bias = torch.tensor(_BIAS, dtype=wide, device=x.device, requires_grad=True)
        tables = Folds.from_ids(*ids).to(x.device).tables(len(x), len(y), x.device)
        r = sigmoid_statistics(x, y, scale, bias, tables, backend)
        # Every negative and every positive has a place in a row and one in a column.
        loss = (r.softplus_sum.sum() + softplus(-(r.positives + bias)).sum()) / 2 / len(x)
        return [loss, *torch.autograd.grad(loss, (x, y, scale, bias))]
    loss = fused_mfh_loss(
        x,
        y,
        ids,
        logit_scale=scale,
        teacher_image_features=teacher_x if batch.teacher else None,
        teacher_text_features=teacher_y if batch.teacher else None,
        hard_weight=_HARD_WEIGHT,
        rounds=batch.rounds,
        selection=None if selection is None else tuple(s.to(x.device) for s in selection),
        backend=backend,
        **(_rules(x, y) if batch.told else {}),
    )
    return [loss, *torch.autograd.grad(loss, (x, y, scale))]


def _dense(batch: _Batch, features: list[Tensor], ids, selection) -> list[Tensor]:
    """Loss and gradients with the matrix, the mask and autograd, in the features' dtype."""
    x, y, teacher_x, teacher_y = features
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    scale = torch.tensor(1 / _TEMPERATURE, dtype=x.dtype, device="cpu", requires_grad=True)
    S = scale * (x @ y.T)  # (M, N)
    T = scale.detach() * (teacher_x @ teacher_y.T) if batch.teacher else None
    positive = ids[0][:, None] == ids[1]  # (M, N)
    if batch.sigmoid:
        bias = torch.tensor(_BIAS, dtype=x.dtype, device="cpu", requires_grad=True)
        sign = torch.where(positive, 1, -1).to(x.dtype)
        loss = -logsigmoid(sign * (S + bias)).sum() / len(x)
        return [t.detach() for t in (loss, *torch.autograd.grad(loss, (x, y, scale, bias)))]
    removed = torch.zeros_like(positive), torch.zeros_like(positive.T)
    if batch.told:
        rules, similarities = _rules(x, y), teacher_x @ teacher_y.T
        S = S + rules["image_offsets"].to(S)[:, None] + rules["text_offsets"].to(S)
        removed = (
            _removed(similarities, positive, rules["exclude_ids"], rules["within_ids"]),
            _removed(
                similarities.T, positive.T, rules["exclude_ids"][::-1], rules["within_ids"][::-1]
            ),
        )
    drawn = (None, None) if selection is None else selection
    of_rows = _dense_direction(S, T, positive, removed[0], drawn[0])
    T = None if T is None else T.T
    loss = (of_rows + _dense_direction(S.T, T, positive.T, removed[1], drawn[1])) / 2
    return [t.detach() for t in (loss, *torch.autograd.grad(loss, (x, y, scale)))]


def _removed(
    similarities: Tensor,
    positive: Tensor,
    exclude: tuple[Tensor, Tensor],
    within: tuple[Tensor, Tensor],
) -> Tensor:
    """(rows, columns) pairs that are no negatives of their rows."""
    (e, other_e), (w, other_w) = exclude, within
    out = (e[:, None] == other_e) & (e >= 0)[:, None]
    out |= (w[:, None] != other_w) & (w >= 0)[:, None] & (other_w >= 0)
    mean = (similarities * positive).sum(1) / positive.sum(1).clamp(min=1)
    limit = torch.where(positive.any(1), mean - _MARGIN + 1e-4, torch.inf)
    return (out | (similarities > limit[:, None])) & ~positive


def _dense_direction(
    S: Tensor, T: Tensor | None, positive: Tensor, removed: Tensor, drawn: Tensor | None
) -> Tensor:
    """Mean of a h over the rows with a positive, plus the mean of (1 - a) q over all rows."""
    if drawn is None:
        weights = positive.to(S.dtype)
    else:
        rows = torch.arange(len(S), device="cpu").expand_as(drawn)
        weights = torch.zeros_like(S)
        taken = drawn >= 0
        weights = weights.index_put(
            (rows[taken], drawn[taken]), torch.ones((), dtype=S.dtype), accumulate=True
        )
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    negatives = S.masked_fill(positive | removed, -torch.inf)
    # The denominator of pair (i, k) holds it and the negatives of row i: never a positive else.
    alone = torch.logaddexp(S, negatives.logsumexp(1, keepdim=True))
    hard = (weights * (alone - S)).sum() / positive.any(1).sum()
    if T is None:
        return hard
    soft = -(T.softmax(1) * S.log_softmax(1)).sum(1).mean()
    return _HARD_WEIGHT * hard + (1 - _HARD_WEIGHT) * soft
