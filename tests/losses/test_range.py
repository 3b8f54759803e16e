"""Upstream gradients and scales from float32's smallest numbers to its greatest: never NaN.

Gradients are linear in the upstream gradient g, so one dense float64 computation serves every g.
"""

from dataclasses import dataclass, replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mxm_kernels import fused_info_nce_loss, fused_siglip_loss
from reference.mfh import group_matrix
from tests.support.backend import BackendUnderTest
from tests.support.calls import Given, call
from tests.support.cases import NAMED_CASES, Case
from tests.support.compare import allowed
from tests.support.dense import dense
from tests.support.family import LOSSES
from tests.support.options import Choice

UPSTREAM = (1e-45, 1e-40, 1e-38, 1e-30, 1e-10, 1.0, 1e10, 1e30, 1e38)
PLAIN = Choice()


@dataclass(frozen=True)
class Aligned(Case):
    """Features of an instance are its own axis: every margin is the scale, and nothing cancels."""

    def features(self, dtype: torch.dtype) -> list[Tensor]:
        """One-hot rows; the teacher is random, as in every case."""
        *_, tx, ty = super().features(dtype)
        axes = torch.eye(self.dimension, dtype=dtype)
        return [*(axes[ids] for ids in self.ids), tx, ty]


RAGGED = NAMED_CASES["ragged and shuffled"]
ALIGNED = Aligned(RAGGED.image_ids, RAGGED.text_ids)
BATCHES = {
    f"{name}, scale {s:g}": replace(case, temperature=1 / s)
    for name, case, scales in (
        ("random", RAGGED, (80, 1000, 1e-30, 1e30)),
        ("aligned", ALIGNED, (80, 1000, 1e30)),
    )
    for s in scales
}


def _siglip(case: Case, dtype: torch.dtype, reduction: str, device=None, backend=None):
    """SigLIP by a backend, or dense in float64, and its leaves."""
    wide = torch.float32 if backend and dtype != torch.float64 else torch.float64
    x, y = (f.to(device, dtype if backend else wide, copy=True) for f in case.features(dtype)[:2])
    scalars = (torch.tensor(v, dtype=wide, device=device) for v in (1 / case.temperature, -10.0))
    leaves = [v.requires_grad_() for v in (x, y, *scalars)]
    s, b = leaves[2:]
    if backend:
        loss = fused_siglip_loss(
            x, y, case.ids, logit_scale=s, logit_bias=b, reduction=reduction, backend=backend
        )
        return loss, leaves
    signs = 2.0 * group_matrix(*case.ids) - 1
    terms = -logsigmoid(signs * (s * x @ y.T + b))
    losses = terms.sum(1), terms.sum(0)
    return losses if reduction == "none" else (losses[0].mean() + losses[1].mean()) / 2, leaves


def _negatives(S: Tensor, negatives: Tensor) -> Tensor:
    return S.masked_fill(~negatives, -torch.inf).logsumexp(1, keepdim=True)


def _masked(S: Tensor, positives, negatives: Tensor, weights: Tensor, smoothing: float):
    """Softplus of the margin. A softmax would form 1 - p, which is 0 for p within 1e-16 of 1."""
    return (weights * -logsigmoid(S - _negatives(S, negatives))).sum(1)


def _debiased(S, positives, negatives, weights, smoothing, *, scale: Tensor):
    """The sums over the negatives by their logarithms, which a scale of 1000 leaves finite."""
    counts = negatives.sum(1, keepdim=True).double().log(), positives.sum(1, keepdim=True).double()
    n, p = _negatives(S, negatives), _negatives(S, positives) - counts[1].clamp(min=1).log()
    excess = (PRIOR.log() + counts[0] + p - n).clamp(max=0)
    without = n + torch.log1p(-excess.exp()) - torch.log1p(-PRIOR)
    g = torch.maximum(without, counts[0] - scale)
    return (weights * -logsigmoid(S - g)).sum(1)


PRIOR = torch.tensor(0.1, dtype=torch.float64)
DENSE = {"info_nce": _masked, "hard": _masked, "debiased": _debiased}


def _family(name: str, choice: Choice, case: Case, dtype: torch.dtype, device=None, backend=None):
    loss, given = replace(LOSSES[name], dense=DENSE[name]), Given(case, choice, dtype)
    if backend:
        return call(loss, given, dtype, device, backend)[:2]
    return dense(loss, given, torch.float64)[:2]


# (case, dtype, [device, backend]) -> the loss and its leaves; without a backend dense in float64.
RUNS = {
    "info_nce": partial(_family, "info_nce", PLAIN),
    "info_nce, rows": partial(_family, "info_nce", replace(PLAIN, reduction="none")),
    "weights of the rows": partial(
        _family, "info_nce", replace(PLAIN, image_weights=True, text_weights=True)
    ),
    "mfh": partial(_family, "hard", replace(PLAIN, soft_weight="number")),
    "mfh, rows": partial(_family, "hard", replace(PLAIN, soft_weight="number", reduction="none")),
    "mfh without a teacher": partial(_family, "hard", PLAIN),
    "debiased": partial(_family, "debiased", PLAIN),
    "siglip": partial(_siglip, reduction="mean"),
    "siglip, rows": partial(_siglip, reduction="none"),
}


def _gradients(made, upstream: float) -> list[Tensor]:
    loss, leaves = made
    loss = torch.cat(tuple(loss)) if isinstance(loss, tuple) else loss
    each = torch.linspace(0.5, 1, loss.numel(), dtype=torch.float64).reshape(loss.shape).to(loss)
    return list(torch.autograd.grad(loss, leaves, each * upstream, retain_graph=True))


@cache
def _expected(run: str, batch: str, dtype: torch.dtype) -> list[Tensor]:
    """By an upstream gradient of 1, in float64."""
    return _gradients(RUNS[run](BATCHES[batch], dtype), 1.0)


def _limit(
    run: str, batch: str, dtype: torch.dtype, expected: Tensor, g: float, on: BackendUnderTest
) -> float:
    """How far a gradient may be from float64's."""
    case = BATCHES[batch]
    s, size = 1 / case.temperature, float(expected.norm())
    # Random features: the terms of a sum cancel. A term is at most a probability times s. On their
    # own axes they do not, and a loss of 1e-35 has its gradient to its last digits.
    largest = g * s if expected.ndim == 2 else g
    terms = 4 * largest if batch.startswith("random") else size
    # A probability is as far off as exp makes of S's rounding, where S is greater than 1. At 1e30
    # it is 0 or 1, and exact where the normaliser is S to the last bit. Triton's has passed through
    # base 2: there a probability may be off by 1, and what is tested is that nothing overflows.
    rounding = 4 + (s if 1 <= s <= 1e4 else 0)
    if s > 1e4 and on.name == "triton":
        rounding = 1 / torch.finfo(torch.float32).eps
        terms = 4 * largest
    # What is below the smallest number: of float32 for the upstream gradients of the rows and the
    # pairs, which the scale multiplies, and of the dtype for the result. A GPU may flush denormals.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    positives, least = group_matrix(*case.ids), torch.finfo(torch.float32)
    count = sum(positives.shape) + 2 * int(positives.sum())
    own = torch.finfo(dtype if expected.ndim == 2 else wide)
    least, own = (f.tiny * (f.eps if on.device.type == "cpu" else 1) for f in (least, own))
    floor = max(count * least * max(s, 1), own)
    if run == "debiased":  # its margins are twice the scale: at 80 float32 has no such probability
        floor = max(floor, torch.finfo(torch.float32).tiny * largest)
    return max(allowed(dtype, size, 0.0, terms, rounding), floor * expected.numel() ** 0.5)


def _assert_close(name: str, actual: Tensor, expected: Tensor, limit: float) -> None:
    """Infinite where float64's gradient leaves the dtype, elsewhere within ``limit`` of it."""
    actual, most = actual.detach().cpu(), torch.finfo(actual.dtype).max
    assert bool(expected.isfinite().all()), f"{name}: the reference is not finite"
    assert not actual.isnan().any(), f"{name}: NaN"
    outside = actual.isinf()
    reaches = (expected * actual.double().sign() + limit)[outside]
    assert bool((reaches >= most).all()), f"{name}: infinite for {expected[outside]}"
    wrong = float((actual.double() - expected)[~outside].norm())
    assert wrong <= limit, (
        f"{name}: error {wrong:.3g} of {float(expected.norm()):.3g}, allowed {limit:.3g}"
    )


def _pairs():
    for run in RUNS:
        for batch in BATCHES:
            # At a tiny scale debiased's sum over the negatives stands just on its floor, a kink.
            if not (run == "debiased" and batch.endswith("1e-30")):
                yield run, batch


@pytest.mark.parametrize(("run", "batch"), _pairs(), ids=lambda part: part)
def test_gradients_are_float64s_rounded(run, batch, backend):
    for dtype in backend.dtypes:
        made = RUNS[run](BATCHES[batch], dtype, device=backend.device, backend=backend.name)
        for g in UPSTREAM[:: 2 if backend.interpreted else 1]:  # 1e-45 and 1e38 among them
            upstream = float(torch.tensor(g, dtype=torch.float32))
            got, ones = _gradients(made, upstream), _expected(run, batch, dtype)
            for name, actual, one in zip(NAMES, got, ones, strict=False):
                # Its parts of the negatives and of the positives meet outside the operator.
                if name == "bias" and run == "siglip, rows" and g == 1e38:
                    continue
                expected = one * upstream
                limit = _limit(run, batch, dtype, expected, upstream, backend)
                _assert_close(f"{name} of {dtype} by {g}", actual, expected, limit)


NAMES = ("image", "text", "scale", "bias")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_saturated_batch_has_its_gradient(dtype, backend):
    """A loss of 5e-35: float16 features have none that it holds, and the scale has its own."""
    x, y = (torch.eye(4, dtype=dtype, device=backend.device, requires_grad=True) for _ in range(2))
    s = torch.tensor(80.0, device=backend.device, requires_grad=True)
    loss = fused_info_nce_loss(x, y, logit_scale=s, backend=backend.name)
    loss.backward()
    margin = 80 - torch.tensor(3.0, dtype=torch.float64).log()
    p = torch.sigmoid(-margin)  # what the negatives of a row have together
    S = p / 3 * (1 - torch.eye(4, dtype=torch.float64)) - p * torch.eye(4, dtype=torch.float64)
    of_S = 80 * 4 * torch.finfo(torch.float32).eps  # exp makes it of the rounding of S
    near = partial(torch.testing.assert_close, rtol=of_S, atol=0)
    near(loss.detach().cpu().double(), p)
    assert s.grad is not None
    near(s.grad.cpu().double(), -p)
    low = torch.finfo(dtype)  # 0 or a denormal number in float16
    for leaf in (x, y):
        assert leaf.grad is not None
        near(leaf.grad.cpu().double(), 80 * S / 4, rtol=of_S + low.eps, atol=low.tiny * low.eps)


@pytest.mark.parametrize("name", ["info_nce", "siglip"])
def test_weights_of_rows_count_by_their_ratio(name, backend):
    """Also weights whose inverse is no float32."""
    x, y, *_ = (f.to(backend.device) for f in RAGGED.features(torch.float32))
    weights = torch.arange(1.0, 1 + len(x), device=backend.device)
    function = {
        "info_nce": fused_info_nce_loss,
        "siglip": partial(fused_siglip_loss, logit_bias=-1.0),
    }[name]
    losses = [
        function(
            x, y, RAGGED.ids, logit_scale=10.0, image_weights=weights * size, backend=backend.name
        )
        for size in (1.0, 2.0**-130)
    ]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
