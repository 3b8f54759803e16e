"""Triton's kernels where rules tell of pairs, against the plain backend in float64.

Without a GPU they are interpreted, in tiles of 16 x 16: the batches have several, and tails.
"""

import math
from dataclasses import astuple

import pytest
import torch

pytest.importorskip("triton", reason="the package triton is not installed")

from mxm_kernels import backends
from mxm_kernels.backends.interface import (
    Memory,
    Needs,
    PairRules,
    Problem,
    SigmoidStatistics,
    SigmoidWeights,
    Upstream,
)
from tests.backends.test_native import _cast, _double, _largest, _problem
from tests.backends.test_native_rules import (
    CASES,
    RULES,
    SIGMOID_RULES,
    TEACHERS,
    _assert_close,
    _exact,
    _rules_of,
    _run,
    _told,
)
from tests.support.plan import in_small_parts

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
LOW = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *LOW)
KEEP, AGAIN = Memory(1 << 30, keep=True), Memory(1 << 30)
NEEDS = Needs(True, True, True, True, True)
TRITON = backends.load("triton")
pytestmark = pytest.mark.skipif(
    (why := TRITON.unavailable(DEVICE, torch.float32)) is not None, reason=str(why)
)


def _moved(p: Problem, device: torch.device = DEVICE) -> Problem:
    return p._replace(**{k: v.to(device) for k, v in p._asdict().items() if v is not None})


def _found(p: Problem, memory: Memory = AGAIN, **options) -> dict:
    """What the kernels give, on the CPU."""
    found = _run(TRITON, _moved(p), memory, **options)
    return {name: value.cpu() for name, value in found.items()}


def _check(p: Problem, memory: Memory = AGAIN, rounding: float = 1e-5, **options) -> dict:
    """The exact numbers, to which the kernels' are close; dx and dy in their dtype's rounding."""
    exact, found = _exact(p, **options), _found(p, memory, **options)
    if p.x.dtype == torch.float32:
        _assert_close(found, exact, rounding)
        return exact
    kept = TRITON.kept_stride(_moved(p), memory) is not None
    gradients = ("dx", "dy", "dscale", "dlogit_offsets")
    _assert_close(found, exact, rounding, leave_out=gradients)
    eps = torch.finfo(p.x.dtype).eps
    for name in ("dx", "dy"):
        off = (found[name].double() - exact[name]).norm()
        assert off < (eps + 1e-3 * kept) * exact[name].norm(), name
    off = (found["dscale"].double() - exact["dscale"]).abs()
    assert off < (2e-5 if kept else 1e-6) * exact["terms"]
    off = (found["dlogit_offsets"].double() - exact["dlogit_offsets"]).abs().max()
    assert off < (1e-3 if kept else 2e-5) * _largest(exact["dlogit_offsets"])
    return exact


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("teacher", "rules"), CASES, ids=str)
def test_each_rule_alone_and_all_together(teacher, rules, dtype):
    p = _told(_cast(_problem(21, 18, 16), dtype), rules, teacher)
    _check(p)


def _without_filter(p: Problem) -> Problem:
    """The problem without thresholds, and without a teacher that is there for them alone."""
    p = p._replace(thresholds=None)
    return p if p.has_soft else p._replace(teacher_x=None, teacher_y=None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_what_is_kept_and_what_is_not_asked_for(teacher, dtype):
    p = _told(_cast(_problem(21, 18, 16), dtype), _rules_of(teacher)[-1], teacher)
    fixed = dtype != torch.float32
    assert (TRITON.kept_stride(_moved(p), KEEP) is None) == (fixed and p.filters)
    if fixed:
        p = _without_filter(p)
    assert TRITON.kept_stride(_moved(p), KEEP) is not None
    for few in ({"neg_sum": False}, {"diagnostics": False, "neg_sum": False}):
        _check(p, KEEP, **few)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "again"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_spans_and_chunks(teacher, dtype, keep, monkeypatch):
    """Sums go on from span to span and from chunk to chunk."""
    from mxm_kernels.backends.triton import plan

    in_small_parts(monkeypatch, not GPU)
    p = _told(_cast(_problem(37, 41, 16), dtype), _rules_of(teacher)[-1], teacher)
    if dtype != torch.float32 and keep:
        p = _without_filter(p)
    memory = Memory(1 << 30, keep=keep)
    assert plan.spans_of(_moved(p), 10).width == (128 if GPU else 16)
    _check(p, memory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_large_logits_and_offsets(teacher, dtype):
    problem = _cast(_problem(21, 18, 16, scale=300.0), dtype)
    p = _told(problem, _rules_of(teacher)[-1], teacher, size=100.0)
    _check(p, rounding=2e-7 * 600)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_rows_with_nothing_left(teacher, dtype):
    """Rows whose every negative is removed have -inf, gradients without NaN."""
    p = _told(_cast(_problem(21, 18, 16), dtype), ["logit_offsets"], teacher)
    ids = torch.arange(39) % 3
    ids[:10:3], ids[30:34] = 7, 8  # ids that no row of the other side has
    for within in (ids, torch.arange(39)):
        exact = _check(p._replace(within_ids=within))
        alone = exact["num_negatives"] == 0
        assert alone.any() and (exact["neg_lse"][alone] == -math.inf).all()
    assert alone.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("teacher", TEACHERS[:2])
def test_the_filter_acts_in_one_direction_alone(teacher, dtype):
    p = _told(_cast(_problem(21, 18, 16), dtype), ["thresholds"], teacher)
    images, texts = slice(0, 21), slice(21, 39)
    for side, other in ((images, texts), (texts, images)):
        thresholds = p.thresholds.clone()
        thresholds[other] = math.inf
        thresholds[side.start] = -math.inf  # all that is no positive
        exact = _check(p._replace(thresholds=thresholds))
        plain = _exact(p._replace(thresholds=torch.full_like(thresholds, math.inf)))
        fewer = exact["num_negatives"] < plain["num_negatives"]
        assert fewer[side].any() and not fewer[other].any()
        assert exact["num_negatives"][side.start] == 0


def test_ids_are_compared_whole():
    """Ids that agree in their lower 32 bits are different, and an id of 2^31 - 1 is one."""
    p = _problem(20, 18, 16, with_teacher=False)
    images = torch.tensor([5, (1 << 32) + 5, -1, (1 << 31) - 1, 1 << 62]).repeat(4)
    texts = torch.tensor([5, (3 << 32) + 5, -7, (1 << 31) - 1, 1 << 62, 6]).repeat(3)
    for name in ("exclude_ids", "within_ids"):
        _check(p._replace(**{name: torch.cat([images, texts])}))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rules_of_no_effect_change_no_number(dtype):
    p = _cast(_problem(21, 18, 16), dtype)
    idle = _moved(p)
    idle = _moved(p)._replace(**dict(zip(PairRules._fields, idle.every_rule(), strict=True)))
    plain, told = _run(TRITON, _moved(p)), _run(TRITON, idle)
    for name, value in plain.items():
        if value.numel() and name != "terms":
            atol = 2e-5 * _largest(value[value.isfinite()])
            torch.testing.assert_close(told[name], value, rtol=1e-5, atol=atol, msg=name)
    assert not told["dlogit_offsets"].isnan().any()
    assert (told["excluded_lse"] == -math.inf).all()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_upstream_gradients_of_any_size(size):
    p = _told(_problem(21, 18, 16), RULES, "teacher")

    def gradients(backend, p):
        made = backend.forward(p, AGAIN)
        g = torch.Generator().manual_seed(1)
        drawn = (torch.randn(v.shape, generator=g, dtype=torch.float64) for v in made[:5])
        upstream = Upstream(*((d * size).to(made.neg_lse) for d in drawn))
        return backend.backward(p, made, upstream, NEEDS, AGAIN)

    exact = gradients(backends.load("blocked"), _double(p))
    for found, expected in zip(gradients(TRITON, _moved(p)), exact, strict=True):
        atol = 1e-5 * _largest(expected)
        torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_twice_and_only_the_gradients_that_are_wanted(dtype):
    p = _moved(_told(_cast(_problem(21, 18, 16), dtype), RULES, "teacher"))
    first, second = _run(TRITON, p), _run(TRITON, p)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    made = TRITON.forward(p, AGAIN)
    upstream = Upstream(*(torch.ones_like(v) for v in made[:5]))
    whole = TRITON.backward(p, made, upstream, NEEDS, AGAIN)
    part = TRITON.backward(p, made, upstream, Needs(False, True, True), AGAIN)
    assert torch.equal(part.y, whole.y) and torch.equal(part.scale, whole.scale)
    assert not part.x.numel() and not part.logit_offsets.numel()
    last = Needs(False, False, False, logit_offsets=True)
    last = TRITON.backward(p, made, upstream, last, AGAIN)
    assert torch.equal(last.logit_offsets, whole.logit_offsets)


def test_a_teacher_that_is_not_finite_shows_where_it_filters_alone():
    """Its products are compared with nothing, and would leave every pair in."""
    for name, row in (("teacher_x", 2), ("teacher_y", 3)):
        p = _told(_problem(21, 18, 16), ["thresholds"], "filter alone")
        getattr(p, name)[row, 1] = math.nan
        made = TRITON.forward(_moved(p), AGAIN)
        assert made.neg_lse[row if name == "teacher_x" else 21 + row].isnan()


def _sigmoid(backend, p: Problem) -> dict:
    bias = p.scale * 0 - 3
    made = backend.sigmoid_forward(p, bias, AGAIN)
    g = torch.Generator().manual_seed(1)
    upstream = SigmoidStatistics(*(torch.randn(v.shape, generator=g).to(v) for v in made))
    run = backend.sigmoid_backward(p, bias, made.positives, upstream, NEEDS, AGAIN)
    found = {**made._asdict(), **{f"d{name}": value for name, value in run._asdict().items()}}
    for weighted in (True, False):
        sizes = len(p.x) + len(p.y), p.pairs if weighted else 0
        weights = SigmoidWeights(*(torch.rand(n, generator=g).to(p.scale) for n in sizes))
        loss = backend.sigmoid_loss(p, bias, weights, NEEDS, AGAIN)
        found[f"loss {weighted}"] = loss.loss
        scaled = backend.sigmoid_loss_backward(torch.full_like(bias, 0.3), loss, p.x.dtype)
        for name, value in zip(loss._fields[1:], scaled, strict=True):
            found[f"{name} {weighted}"] = value
    return {name: value.cpu() for name, value in found.items()}


@pytest.mark.parametrize("parts", ["one", "many"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rules", SIGMOID_RULES, ids=str)
def test_the_sigmoid_operators(rules, dtype, parts, monkeypatch):
    if parts == "many":
        in_small_parts(monkeypatch, not GPU)
    p = _told(_cast(_problem(37, 22, 16, with_teacher=False), dtype), rules, "none")
    exact, found = _sigmoid(backends.load("blocked"), _double(p)), _sigmoid(TRITON, _moved(p))
    eps = torch.finfo(dtype).eps
    for name, expected in exact.items():
        rounding = max(1e-5, 2 * eps * name.startswith(("dx", "dy")))
        off = (found[name].double() - expected).abs().max()
        assert off <= rounding * max(1.0, _largest(expected)), name


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_forward_and_backward_have_one_tile_under_rules(target):
    """A filter has to decide by the same bits in both."""
    from mxm_kernels.backends.triton.settings import SETTINGS, Cell

    for teacher in (False, True):
        for pointers in (False, True):
            tiles = []
            for phase in ("statistics", "gradient"):
                cell = Cell(phase, torch.bfloat16, teacher, 768, 16_384, told=True)
                tiles.append(astuple(cell.shipped(target, pointers, neg_sum=True)))
            assert tiles[0] == tiles[1] or not teacher
    assert SETTINGS[target]["statistics"].told_teacher is not None
