"""The native backend where rules tell of pairs, against the plain one in float64."""

import math

import pytest
import torch

from mxm_kernels import backends
from mxm_kernels.backends import native
from mxm_kernels.backends.interface import (
    Memory,
    Needs,
    Problem,
    SigmoidStatistics,
    SigmoidWeights,
    Statistics,
    Upstream,
)
from tests.backends.test_native import LEVELS, _cast, _double, _largest, _problem

pytestmark = pytest.mark.skipif(native.cpp is None, reason="built without a compiler")
NEEDS = Needs(True, True, True, True, True)
KEEP, AGAIN = Memory(256 << 20, keep=True), Memory(64 << 20)
TEACHERS = ["teacher", "filter alone", "none"]
RULES = ["logit_offsets", "teacher_offsets", "exclude_ids", "within_ids", "thresholds"]
SHAPES = [(203, 157, 24), (67, 1, 5), (1, 17, 4), (35, 33, 8), (40, 513, 16), (70, 1100, 24)]


def _thresholds(p: Problem, share: float) -> torch.Tensor:
    """(R,) that lie in a wide gap of each row's products: rounding moves none across them."""
    products = p.teacher_x.double() @ p.teacher_y.double().T
    found = []
    for rows in (products, products.T):
        ordered = rows.sort(1).values
        first = int(share * (ordered.shape[1] - 1))
        gaps = ordered.diff(dim=1)[:, first:]
        if not gaps.shape[1]:  # one column: a threshold on either side of it
            found.append(ordered[:, 0] + torch.where(torch.arange(len(rows)) % 2 == 0, 0.1, -0.1))
            continue
        gap, at = gaps.max(1)
        assert gap.min() > 1e-5
        found.append(ordered[:, first:].gather(1, at[:, None])[:, 0] + gap / 2)
    return torch.cat(found).float()


def _told(p: Problem, names, teacher="teacher", seed=0, size=3.0, share=0.6) -> Problem:
    """The problem with rules, drawn at random."""
    g = torch.Generator().manual_seed(seed)
    rows = len(p.x) + len(p.y)
    drawn = {
        "logit_offsets": size * torch.randn(rows, generator=g),
        "teacher_offsets": torch.randn(rows, generator=g),
        "exclude_ids": torch.randint(-3, 9, (rows,), generator=g) * (1 << 40),
        "within_ids": torch.randint(-2, 4, (rows,), generator=g),
    }
    if p.teacher_x is not None:
        drawn["thresholds"] = _thresholds(p, share)
    chosen = {name: drawn[name] for name in names if name in drawn}
    p = p._replace(**chosen)
    if teacher == "none":
        p = p._replace(teacher_x=None, teacher_y=None, teacher_scale=None)
    return p._replace(teacher_scale=None) if teacher == "filter alone" else p


def _rules_of(teacher: str) -> list[list[str]]:
    """Each rule alone and all together, those that the teacher allows."""
    names = [n for n in RULES if teacher == "teacher" or n != "teacher_offsets"]
    if teacher == "none":
        names.remove("thresholds")
    alone = [[n] for n in names] if teacher != "filter alone" else [["thresholds"]]
    return [*alone, names]


CASES = [(teacher, rules) for teacher in TEACHERS for rules in _rules_of(teacher)]


def _upstream(statistics: Statistics) -> Upstream:
    g = torch.Generator().manual_seed(1)
    drawn = (torch.randn(s.shape, generator=g) / max(len(s), 1) for s in statistics[:5])
    return Upstream(*(d.to(statistics.neg_lse.dtype) for d in drawn))


def _run(backend, p: Problem, memory=AGAIN, diagnostics=True, neg_sum=True) -> dict:
    """Statistics and gradients by name, what is kept left out."""
    made = backend.forward(p, memory, diagnostics=diagnostics, neg_sum=neg_sum)
    gradients = backend.backward(p, made, _upstream(made), NEEDS, memory)
    found = {**made._asdict(), **{f"d{k}": v for k, v in gradients._asdict().items()}}
    found["terms"] = _terms(p, _upstream(made))
    return {k: v for k, v in found.items() if k not in ("kept", "units", "neg_mean")}


def _terms(p: Problem, upstream: Upstream) -> torch.Tensor:
    """() what the gradient of the scale sums, without its signs, or more."""
    largest = p.x.double().norm(dim=1).max() * p.y.double().norm(dim=1).max()
    return largest * sum(d.double().abs().sum() for d in upstream)


def _assert_close(found: dict, exact: dict, rounding: float, leave_out=()) -> None:
    for name, expected in exact.items():
        got = found[name].double()
        if name in (*leave_out, "terms"):
            continue
        assert got.shape == expected.shape, name
        finite = expected.isfinite()
        assert torch.equal(got[~finite], expected.double()[~finite]), name
        atol = rounding * max(_largest(expected[finite]), 1e-30)
        if name == "entropy":  # a difference of numbers of the size of T
            atol = rounding * max(_largest(expected), _largest(exact["teacher_lse"]))
        if name == "dscale":  # a sum in which terms cancel
            atol += rounding / 40 * exact["terms"].item()
        torch.testing.assert_close(
            got[finite], expected[finite].double(), rtol=0, atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip
    assert found.keys() == exact.keys()


def _exact(p: Problem, **options) -> dict:
    return _run(backends.load("blocked"), _double(p), **options)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("teacher", "rules"), CASES, ids=str)
def test_every_level_agrees_with_float64(level, teacher, rules):
    p = _told(_problem(), rules, teacher)
    _assert_close(_run(native._Native(level), p), _exact(p), 8e-6)


@pytest.mark.parametrize("memory", [KEEP, AGAIN], ids=["kept", "again"])
@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_with_tails(shape, teacher, memory):
    p = _told(_problem(*shape), _rules_of(teacher)[-1], teacher)
    assert (native.backend.kept_stride(p, memory) is None) == (memory is AGAIN)
    for few in ({}, {"diagnostics": False}, {"diagnostics": False, "neg_sum": False}):
        _assert_close(_run(native.backend, p, memory, **few), _exact(p, **few), 8e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("teacher", "rules"), CASES, ids=str)
def test_16_bit_features_tile_by_tile(teacher, rules, dtype):
    p = _cast(_problem(scale=12.0), dtype)
    p = _told(p, rules, teacher)
    eps = torch.finfo(dtype).eps
    exact = _exact(p)
    for memory in (AGAIN, KEEP):
        kept = native._Native(LEVELS[0]).kept_stride(p, memory) is not None
        assert kept == (memory is KEEP and "thresholds" not in rules)
        found = _run(native._Native(LEVELS[0]), p, memory)
        _assert_close(found, exact, 8e-6, leave_out=("dx", "dy", "dscale", "dlogit_offsets"))
        for name in ("dx", "dy"):
            allowed = eps * exact[name].abs() + 2e-3 * _largest(exact[name]) * kept + 1e-6
            assert ((found[name].double() - exact[name]).abs() <= allowed).all(), name
        loose = 1e-4 if kept else 8e-6
        for name in ("dscale", "dlogit_offsets"):
            torch.testing.assert_close(
                found[name].double(),
                exact[name],
                rtol=0,
                atol=loose * max(1, _largest(exact[name])),
            )


@pytest.mark.parametrize("unit", ["amx", "avx512_bf16"])
@pytest.mark.parametrize("shape", [(203, 157, 24), (1100, 700, 64), (33, 31, 7)], ids=str)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_units_for_bfloat16(unit, shape, teacher):
    if unit not in native.cpp.units():
        pytest.skip(f"no {unit} on this machine")
    p = _told(_cast(_problem(*shape), torch.bfloat16), _rules_of(teacher)[-1], teacher)
    fused = native._Native(isa=unit)
    assert fused._fuses(p)
    found, exact = _run(fused, p), _exact(p)
    _assert_close(found, exact, 2e-5, leave_out=("dx", "dy"))
    eps = torch.finfo(torch.bfloat16).eps
    for name in ("dx", "dy"):  # dS is rounded, and so is the result
        off = (found[name].double() - exact[name]).norm() / exact[name].norm()
        assert off < eps


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("size", [3.0, 40.0], ids=["offsets", "great offsets"])
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_logits_far_apart(teacher, size, spread):
    """Rows far below their chunk's maximum, and normalisers that no reference serves."""
    p = _told(
        _problem(140, 700, scale=100.0, spread=spread), _rules_of(teacher)[-1], teacher, size=size
    )
    exact = _exact(p)
    images, _ = p.halves(exact["neg_lse"])
    assert images[images.isfinite()].max() - images[images.isfinite()].min() > 40
    found = _run(native.backend, p)
    _assert_close(found, exact, 2e-7 * (100 * spread + 4 * size))


@pytest.mark.parametrize("teacher", TEACHERS)
def test_removed_pairs_far_above_the_negatives(teacher):
    """Near-duplicates of positives: a row's negatives are 100 below what is removed in it."""
    p = _problem(130, 520, scale=100.0)
    y = torch.cat([p.x, p.x, p.x, p.x])[:520]
    p = p._replace(x=p.x, y=y, teacher_x=p.x, teacher_y=y)
    ids = torch.cat([torch.arange(130), torch.arange(520) % 130])
    p = _told(p, ["logit_offsets"], teacher, size=0.1)._replace(exclude_ids=ids)
    if teacher != "none":
        p = p._replace(thresholds=torch.full((650,), 0.98))
    exact = _exact(p)
    _assert_close(_run(native.backend, p), exact, 4e-5)
    if teacher == "teacher":
        assert (exact["excluded_lse"] - exact["neg_lse"]).max() > 20


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("scale", [20.0, 300.0])
def test_rows_with_nothing_left(teacher, scale):
    """Rows whose every negative is removed have -inf, gradients without NaN."""
    p = _problem(90, 620, scale=scale)
    ids = torch.arange(710) % 5
    ids[:40:3], ids[200:300] = 7, 8  # ids that no row of the other side has
    p = _told(p, ["logit_offsets"], teacher)._replace(within_ids=ids)
    exact, found = _exact(p), _run(native.backend, p)
    alone = exact["num_negatives"] == 0
    assert alone.any() and not alone.all()
    assert (found["neg_lse"][alone] == -math.inf).all()
    assert (found["hardest"][alone] == -math.inf).all()
    _assert_close(found, exact, 4e-7 * scale + 8e-6)
    everything = p._replace(within_ids=torch.arange(710))
    found = _run(native.backend, everything)
    assert (found["neg_lse"] == -math.inf).all()
    _assert_close(found, _exact(everything), 4e-7 * scale + 8e-6)


@pytest.mark.parametrize("teacher", TEACHERS[::2])
def test_a_row_keeps_its_sum_beside_chunks_where_it_has_nothing(teacher):
    """The first 512 texts are 4 times as long: references there are far above all other logits."""
    p = _problem(40, 1100, scale=100.0)
    p = p._replace(y=p.y * torch.where(torch.arange(1100) < 512, 4, 1)[:, None])
    of_images, of_texts = torch.arange(40) < 20, torch.arange(1100) < 512
    p = _told(p, [], teacher)._replace(within_ids=torch.cat([of_images, ~of_texts]).long())
    exact = _exact(p)
    n, e = exact["neg_lse"], exact["excluded_lse"]
    assert n[:20].max() + 100 < n[20:40].min() < torch.inf
    assert not len(e) or e[20:40].max() + 100 < e[:20].min() < torch.inf
    _assert_close(_run(native.backend, p), exact, 1e-4)


def test_the_filter_acts_in_one_direction_alone():
    p = _told(_problem(), ["thresholds"], "teacher")
    rows, cols = p.thresholds.clone(), p.thresholds.clone()
    rows[len(p.x) :], cols[: len(p.x)] = math.inf, math.inf
    for one in (rows, cols):
        alone = p._replace(thresholds=one)
        exact = _exact(alone)
        removed = exact["excluded_lse"] > -math.inf
        assert removed.any() and not removed[one == math.inf].any()
        _assert_close(_run(native.backend, alone), exact, 8e-6)
    none = _run(native.backend, p._replace(thresholds=torch.full_like(rows, math.inf)))
    plain = _run(native.backend, p._replace(thresholds=None))
    for name in ("neg_lse", "teacher_mean", "teacher_lse", "positives", "dx", "dy"):
        torch.testing.assert_close(none[name], plain[name], rtol=0, atol=2e-5)


def test_what_a_threshold_removes_far_below_the_negatives():
    """Image 0 keeps no negative, and its logits are 150 below the normalisers of its columns."""
    p = _problem()
    offsets, thresholds = torch.zeros(360), torch.full((360,), math.inf)
    offsets[0], thresholds[0] = -150, -math.inf
    p = p._replace(logit_offsets=offsets, thresholds=thresholds)
    exact = _exact(p)
    n, e = exact["neg_lse"], exact["excluded_lse"]
    assert n[0] == -math.inf and n[1:].max() - n[1:].min() < 40 and e[0] < n[1:].min() - 100
    _assert_close(_run(native.backend, p), exact, 4e-5)


@pytest.mark.parametrize("teacher", TEACHERS[:2])
@pytest.mark.parametrize("memory", [KEEP, AGAIN], ids=["kept", "again"])
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
@pytest.mark.parametrize("level", [None, *LEVELS[:1]])
def test_backward_decides_as_forward_does(level, dtype, memory, teacher):
    """Thresholds at the products: one that is rounded otherwise would be decided otherwise.

    The shares of a row's negatives add up to 1, and so does its gradient by its offset where the
    loss is the sum of n. A pair that only one pass removes would be missing, or be one too many.
    """
    p = _cast(_problem(300, 1100, D=40), dtype)
    p = p._replace(teacher_x=p.x, teacher_y=p.y, logit_offsets=torch.zeros(1400))
    products = p.x.float() @ p.y.float().T
    negative = products.masked_fill(p.image_groups[:, None] == p.text_groups, -math.inf)
    p = p._replace(thresholds=torch.cat([negative.topk(3, 1).values[:, 2], negative.amax(0)]))
    p = p._replace(teacher_scale=None) if teacher == "filter alone" else p
    backend = native._Native(level)
    made = backend.forward(p, memory)
    assert (made.num_negatives[:300] < (negative > -math.inf).sum(1)).all()
    one = torch.zeros_like(made.neg_lse)
    one[:300] = 1
    nothing = {k: torch.zeros_like(getattr(made, k)) for k in Upstream._fields}
    found = backend.backward(p, made, Upstream(**{**nothing, "neg_lse": one}), NEEDS, memory)
    torch.testing.assert_close(found.logit_offsets[:300], one[:300], rtol=0, atol=1e-5)


def test_rules_of_no_effect_change_no_number():
    p = _problem(300, 700)
    rows = len(p.x) + len(p.y)
    idle = p._replace(
        logit_offsets=torch.zeros(rows),
        teacher_offsets=torch.zeros(rows),
        exclude_ids=torch.full((rows,), -5),
        within_ids=torch.full((rows,), -1),
        thresholds=torch.full((rows,), math.inf),
    )
    plain, told = _run(native.backend, p), _run(native.backend, idle)
    for name in ("neg_lse", "positives", "teacher_lse", "hardest"):
        torch.testing.assert_close(told[name], plain[name], rtol=1e-6, atol=1e-6)
    for name in ("dx", "dy", "dscale", "teacher_mean", "entropy"):
        torch.testing.assert_close(told[name], plain[name], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(told["neg_sum"], plain["neg_sum"], rtol=1e-5, atol=2e-4)


def test_ids_are_compared_whole():
    """Ids that agree in their lower 32 bits are different, and an id of 2^31 - 1 is one."""
    p = _problem(40, 33, with_teacher=False)
    images = torch.tensor([5, (1 << 32) + 5, -1, (1 << 31) - 1, 1 << 62]).repeat(8)
    texts = torch.tensor([5, (3 << 32) + 5, -7, (1 << 31) - 1, 1 << 62, 6]).repeat(6)[:33]
    for ids in (torch.cat([images, texts]), torch.cat([images, texts]).clamp(max=(1 << 31) - 1)):
        for name in ("exclude_ids", "within_ids"):
            told = p._replace(**{name: ids})
            exact = _exact(told)
            found = _run(native.backend, told)
            assert torch.equal(found["num_negatives"].double(), exact["num_negatives"])
            _assert_close(found, exact, 8e-6)


@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_bits_twice(threads, dtype):
    p = _told(_cast(_problem(500, 300), dtype), RULES, "teacher")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = (_run(native.backend, p) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_forward_has_the_same_bits_with_any_budget_and_threads():
    p = _told(_problem(1153, 530), RULES, "teacher")
    before = torch.get_num_threads()
    found = []
    try:
        for threads, memory in ((1, AGAIN), (2, AGAIN), (1, KEEP), (2, Memory(4 << 20))):
            torch.set_num_threads(threads)
            found.append(native.backend.forward(p, memory, diagnostics=True, neg_sum=True)[:10])
    finally:
        torch.set_num_threads(before)
    for one in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(one, found[0], strict=True))


@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
def test_only_the_gradients_that_are_wanted(dtype):
    p = _told(_cast(_problem(), dtype), RULES, "teacher")
    made = native.backend.forward(p, AGAIN)
    whole = native.backend.backward(p, made, _upstream(made), NEEDS, AGAIN)
    part = native.backend.backward(p, made, _upstream(made), Needs(False, True, True), AGAIN)
    assert torch.equal(part.y, whole.y) and torch.equal(part.scale, whole.scale)
    assert not part.x.numel() and not part.logit_offsets.numel()
    assert whole.logit_offsets.shape == (len(p.x) + len(p.y),)
    last = native.backend.backward(
        p, made, _upstream(made), Needs(False, False, False, logit_offsets=True), AGAIN
    )
    assert torch.equal(last.logit_offsets, whole.logit_offsets)


def test_offset_gradients_of_many_rows():
    """Sums of 40,000 entries are exact to float32's rounding of what they sum."""
    p = _told(_problem(40_000, 20, D=4, with_teacher=False), ["logit_offsets"], "none")
    exact, found = _exact(p), _run(native.backend, p)
    largest = _largest(exact["dlogit_offsets"])
    assert (found["dlogit_offsets"].double() - exact["dlogit_offsets"]).abs().max() < 3e-7 * largest


SIGMOID_RULES = [["logit_offsets"], ["exclude_ids"], ["within_ids"],
                 ["logit_offsets", "exclude_ids", "within_ids"]]  # fmt: skip


def _sigmoid(backend, p: Problem) -> dict:
    bias = p.scale * 0 - 3
    made = backend.sigmoid_forward(p, bias, AGAIN)
    g = torch.Generator().manual_seed(1)
    upstream = SigmoidStatistics(*(torch.randn(v.shape, generator=g).to(v) for v in made))
    run = backend.sigmoid_backward(p, bias, made.positives, upstream, NEEDS, AGAIN)
    terms = sum(d.double().abs().sum() for d in upstream)
    gradients = {f"d{k}": v for k, v in run._asdict().items()}
    return {**made._asdict(), **gradients, "terms": terms}


def _sigmoid_loss(backend, p: Problem, weighted: bool) -> dict:
    g = torch.Generator().manual_seed(1)
    sizes = len(p.x) + len(p.y), p.pairs if weighted else 0
    weights = SigmoidWeights(*(torch.rand(n, generator=g).to(p.scale) for n in sizes))
    return backend.sigmoid_loss(p, p.scale * 0 - 3, weights, NEEDS, AGAIN)._asdict()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rules", SIGMOID_RULES, ids=str)
@pytest.mark.parametrize("shape", [(203, 157, 24), (33, 601, 7), (1, 17, 3)], ids=str)
def test_the_sigmoid_operators(level, rules, shape):
    p = _told(_problem(*shape, with_teacher=False), rules, "none")
    plain, double = backends.load("blocked"), _double(p)
    found, exact = _sigmoid(native._Native(level), p), _sigmoid(plain, double)
    _assert_close(found, exact, 8e-6)
    for weighted in (True, False):
        found = _sigmoid_loss(native._Native(level), p, weighted)
        _assert_close(found, _sigmoid_loss(plain, double, weighted), 8e-6)


def test_a_float16_sigmoid_loss_has_its_offset_gradients_in_float32():
    p = _told(_cast(_problem(with_teacher=False), torch.float16), SIGMOID_RULES[-1], "none")
    found = _sigmoid_loss(native.backend, p, weighted=False)
    exact = _sigmoid_loss(backends.load("blocked"), _double(p), weighted=False)
    assert found["doffsets"].dtype == torch.float32
    _assert_close(found, exact, 8e-6)
