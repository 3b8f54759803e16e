"""What the native backend alone has: its exp, its levels of instruction set, its threads."""

import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels import BackendUnavailableError, Folds, backends, fused_mfh_loss
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
from mxm_kernels.backends.native import tiling

CPU = torch.device("cpu")
MEMORY = Memory(64 << 20)
extension = pytest.mark.skipif(native.cpp is None, reason="built without a compiler")
LEVELS = native.cpp.levels() if native.cpp is not None else []


def _exponential(level: str, x: torch.Tensor) -> torch.Tensor:
    result = torch.empty_like(x)
    native.cpp.exponential(level, x.data_ptr(), result.data_ptr(), x.numel())
    return result


def _problem(
    rows=203, cols=157, D=24, scale=20.0, with_teacher=True, spread=1.0, seed=0
) -> Problem:
    g = torch.Generator().manual_seed(seed)
    x, y, tx, ty = (normalize(torch.randn(n, D, generator=g)) for n in (rows, cols) * 2)
    x = x * torch.linspace(1, spread, rows)[:, None]
    ids = torch.arange(rows) // 3, torch.arange(cols) // 2
    t = Folds.from_ids(*ids).tables(rows, cols, CPU)
    teacher = (tx, ty) if with_teacher else (None, None)
    scales = torch.tensor(scale), torch.tensor(scale) if with_teacher else None
    return Problem(x, y, *teacher, *scales, *t.pair_tables())


def _cast(problem: Problem, dtype: torch.dtype) -> Problem:
    """The features in another dtype."""
    names = [n for n in ("x", "y", "teacher_x", "teacher_y") if getattr(problem, n) is not None]
    return problem._replace(**{n: getattr(problem, n).to(dtype) for n in names})


def _upstream(statistics: Statistics) -> Upstream:
    g = torch.Generator().manual_seed(1)
    drawn = (
        torch.randn(s.shape, generator=g) / max(len(s), 1)
        for s in statistics[: len(Upstream._fields)]
    )
    return Upstream(*(d.to(statistics.neg_lse.dtype) for d in drawn))


def _run(backend, problem: Problem) -> list[torch.Tensor]:
    statistics = backend.forward(problem, MEMORY, diagnostics=True, neg_sum=True)
    upstream = _upstream(statistics)
    gradients = backend.backward(problem, statistics, upstream, Needs(True, True, True), MEMORY)
    assert not gradients.logit_offsets.numel()  # there are none
    return [*statistics[:-2], *gradients[:-1]]  # without what one backend keeps


def _run_sigmoid(backend, problem: Problem) -> list[torch.Tensor]:
    bias = problem.scale * 0 - 3
    statistics = backend.sigmoid_forward(problem, bias, MEMORY)
    g = torch.Generator().manual_seed(1)
    upstream = SigmoidStatistics(*(torch.randn(v.shape, generator=g).to(v) for v in statistics))
    needs = Needs(True, True, True, True)
    positives = statistics.positives
    run = backend.sigmoid_backward(problem, bias, positives, upstream, needs, MEMORY)
    return [*statistics, *run[:-1]]


def _run_sigmoid_loss(backend, problem: Problem, weighted: bool) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    sizes = len(problem.x) + len(problem.y), problem.pairs if weighted else 0
    weights = SigmoidWeights(*(torch.rand(n, generator=g).to(problem.scale) for n in sizes))
    needs = Needs(True, True, True, True)
    made = backend.sigmoid_loss(problem, problem.scale * 0 - 3, weights, needs, MEMORY)
    return list(made[:-1])


def _double(problem: Problem) -> Problem:
    floats = {
        name: value.double()
        for name, value in problem._asdict().items()
        if value is not None and value.is_floating_point()
    }
    return problem._replace(**floats)


@extension
@pytest.mark.parametrize("level", LEVELS)
def test_exp_is_within_its_bound_of_units_in_the_last_place(level):
    x = torch.cat([torch.linspace(-87, 88, 2_000_003), torch.linspace(-1e-3, 1e-3, 100_001)])
    got, exact = _exponential(level, x), x.double().exp()
    unit = torch.ldexp(torch.ones_like(exact), torch.frexp(exact).exponent - 24)
    assert ((got - exact).abs() / unit).max() <= 2.5


@extension
@pytest.mark.parametrize("level", LEVELS)
def test_exp_of_what_is_not_an_ordinary_number(level):
    x = torch.tensor([-torch.inf, -3e38, -88.0, 0.0, torch.nan])
    got = _exponential(level, x)
    assert got[:4].tolist() == [0, 0, 0, 1] and got[4].isnan()


@extension
@pytest.mark.parametrize("level", LEVELS)
def test_softplus_is_within_its_bound_of_units_in_the_last_place(level):
    x = torch.cat([torch.linspace(-87, 88, 2_000_003), torch.linspace(-1e-3, 1e-3, 100_001)])
    got = torch.empty_like(x)
    native.cpp.softplus(level, x.data_ptr(), got.data_ptr(), x.numel())
    exact = torch.nn.functional.softplus(x.double(), threshold=100)
    unit = torch.ldexp(torch.ones_like(exact), torch.frexp(exact).exponent - 24)
    assert ((got - exact).abs() / unit).max() <= 7


@extension
@pytest.mark.parametrize("level", LEVELS)
def test_softplus_of_what_is_not_an_ordinary_number(level):
    x = torch.tensor([-torch.inf, -3e38, -88.0, 0.0, 3e38, torch.inf, torch.nan])
    got = torch.empty_like(x)
    native.cpp.softplus(level, x.data_ptr(), got.data_ptr(), x.numel())
    assert got[:3].tolist() == [0, 0, 0] and got[4:6].tolist() == x[4:6].tolist()
    assert abs(got[3] - math.log(2)) < 1e-7 and got[6].isnan()


@extension
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("with_teacher", [True, False])
@pytest.mark.parametrize(
    ("scale", "spread"),
    [(20.0, 1.0), (100.0, 1.0), (100.0, 4.0)],
    ids=["shared exponentials", "a wide range", "a range too wide to share"],
)
def test_every_level_agrees_with_float64(level, with_teacher, scale, spread):
    problem = _problem(with_teacher=with_teacher, scale=scale, spread=spread)
    exact = _run(backends.load("blocked"), _double(problem))
    rounding = 2e-7 * scale * spread  # of logits of this size
    for got, expected in zip(_run(native._Native(level), problem), exact, strict=True):
        largest = expected.abs().amax().item() if expected.numel() else 0
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=rounding * largest)


@extension
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("rows", "cols", "D"), [(203, 157, 24), (33, 601, 7), (3, 2, 1)], ids=str)
def test_every_level_agrees_on_the_sigmoid_statistics(level, rows, cols, D):
    problem = _problem(rows, cols, D, with_teacher=False)
    exact = _run_sigmoid(backends.load("blocked"), _double(problem))
    for got, expected in zip(_run_sigmoid(native._Native(level), problem), exact, strict=True):
        largest = expected.abs().amax().item()
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=4e-6 * largest)


@extension
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("rows", "cols", "D"), [(203, 157, 24), (33, 601, 7), (3, 2, 1)], ids=str)
def test_every_level_agrees_on_the_sigmoid_loss(level, weighted, rows, cols, D):
    problem = _problem(rows, cols, D, with_teacher=False)
    exact = _run_sigmoid_loss(backends.load("blocked"), _double(problem), weighted)
    run = _run_sigmoid_loss(native._Native(level), problem, weighted)
    for got, expected in zip(run, exact, strict=True):
        largest = expected.abs().amax().item()
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=4e-6 * largest)


def _largest(values: torch.Tensor) -> float:
    return values.abs().amax().item() if values.numel() else 0.0


def _absolute_terms(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """s |dS| |y| and s |dS|^T |x|: what the gradients sum, without its signs, in float64."""
    p = _double(problem)
    S = (p.scale * p.x @ p.y.T).requires_grad_()
    negatives = S.masked_fill(p.image_groups[:, None] == p.text_groups, -torch.inf)
    slots = S[p.pair_images, p.pair_texts]
    statistics = [
        torch.cat([negatives.logsumexp(1), negatives.logsumexp(0)]),
        torch.cat([slots, torch.empty_like(slots).index_copy(0, p.slot_places, slots)]),
    ]
    if p.has_teacher:
        T = p.teacher_scale * p.teacher_x @ p.teacher_y.T
        statistics.append(torch.cat([(T.softmax(1) * S).sum(1), (T.softmax(0) * S).sum(0)]))
    finite = negatives.masked_fill(negatives == -torch.inf, 0)
    statistics.append(torch.cat([finite.sum(1), finite.sum(0)]))
    upstream = _upstream(native.backend.forward(problem, MEMORY, neg_sum=True))
    given = [u.double() for u in upstream if len(u)]
    (dS,) = torch.autograd.grad(statistics, S, given)
    return p.scale * dS.abs() @ p.y.abs(), p.scale * dS.abs().T @ p.x.abs()


@extension
@pytest.mark.parametrize("with_teacher", [True, False])
@pytest.mark.parametrize(
    ("rows", "cols", "D"),
    [(203, 157, 24), (1100, 700, 64), (1056, 513, 32), (33, 31, 7), (3, 2, 1)],
    ids=str,
)
@pytest.mark.parametrize("unit", ["amx", "avx512_bf16"])
def test_units_for_bfloat16_agree_with_widened_features(unit, rows, cols, D, with_teacher):
    if unit not in native.cpp.units():
        pytest.skip(f"no {unit} on this machine")
    problem = _problem(rows, cols, D, with_teacher=with_teacher)
    problem = _cast(problem, torch.bfloat16)
    apart, fused = native._Native(LEVELS[0]), native._Native(isa=unit)
    assert fused._fuses(problem) and not apart._fuses(problem)
    *results, dx, dy, dscale = _run(fused, problem)
    *expected, expected_dx, expected_dy, expected_dscale = _run(apart, problem)
    for got, want in zip((*results, dscale), (*expected, expected_dscale), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * _largest(want) + 1e-30)
    # The fused way rounds each dS to 8 bits, and both ways round the result: each rounding is
    # off by up to half of eps, of the terms' absolute values where they cancel.
    eps, (dx_terms, dy_terms) = torch.finfo(torch.bfloat16).eps, _absolute_terms(problem)
    for got, want, terms in ((dx, expected_dx, dx_terms), (dy, expected_dy, dy_terms)):
        want = want.double()
        allowed = eps / 2 * terms * (1 + eps) + eps * want.abs() + 1e-5 * _largest(want)
        assert ((got.double() - want).abs() <= allowed).all()


@extension
@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
def test_only_the_gradients_that_are_wanted(needs, dtype):
    problem = _problem()
    problem = _cast(problem, dtype)
    statistics = native.backend.forward(problem, MEMORY)
    upstream = _upstream(statistics)
    whole = native.backend.backward(problem, statistics, upstream, Needs(True, True, True), MEMORY)
    part = native.backend.backward(problem, statistics, upstream, Needs(*needs, True), MEMORY)
    for got, expected, wanted in zip(part, whole, (*needs, True, False), strict=True):
        assert torch.equal(got, expected) if wanted else got.numel() == 0


@extension
def test_a_wide_range_is_not_shared():
    """The third case above takes the other path: its normalisers are more than 40 apart."""
    problem = _problem(scale=100.0, spread=4.0)
    of_images, _ = problem.halves(native.backend.forward(problem, MEMORY).neg_lse)
    assert of_images.max() - of_images.min() > 40


@extension
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_bits_twice(threads, dtype):
    problem = _problem(500, 300)
    problem = _cast(problem, dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = (_run(native.backend, problem) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@extension
@pytest.mark.new_process
@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads in /proc")
@pytest.mark.parametrize("threads", [1, 3])
def test_uses_the_threads_that_torch_was_given(threads):
    program = (
        "import os, torch\n"
        "torch.set_num_threads(1)\n"  # torch itself starts none
        "from tests.backends.test_native import MEMORY, _problem\n"
        "from mxm_kernels.backends.native import backend\n"
        "p, count = _problem(400, 300), lambda: len(os.listdir('/proc/self/task'))\n"
        "before = count()\n"
        f"torch.get_num_threads = lambda: {threads}\n"
        "backend.forward(p, MEMORY)\n"
        "print(count() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(done.stdout) == threads - 1, done.stderr


@extension
@pytest.mark.new_process
@pytest.mark.parametrize("order", ["torch, mxm_kernels._native", "mxm_kernels._native, torch"])
def test_one_openmp_runtime_in_either_import_order(order):
    program = (
        f"import {order}\n"
        "import torch, mxm_kernels as m\n"
        "x = torch.nn.functional.normalize(torch.randn(400, 30)).requires_grad_()\n"
        "m.fused_mfh_loss(x, x, (2, 2), logit_scale=10.0, backend='native').backward()\n"
        "assert x.grad.isfinite().all()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_the_extension_the_error_says_why(monkeypatch):
    monkeypatch.setattr(native, "cpp", None)
    monkeypatch.setattr(native, "MISSING", "No module named '_native'")
    with pytest.raises(BackendUnavailableError, match=r"without a C\+\+ compiler.*_native"):
        backends.choose("native", CPU, torch.float32)
    assert backends.choose(None, CPU, torch.float32) == "blocked"


@extension
def test_an_unknown_level_is_an_error():
    with pytest.raises(ValueError, match="no level sse9"):
        _exponential("sse9", torch.zeros(1))


@extension
def test_an_unknown_unit_is_an_error():
    with pytest.raises(ValueError, match="no unit abacus"):
        native._Native(isa="abacus").forward(_cast(_problem(), torch.bfloat16), MEMORY)


@extension
def test_is_the_choice_for_cpu_tensors():
    for dtype in native.DTYPES:
        assert backends.choose(None, CPU, dtype) == "native"


@extension
@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_runs_on_the_cpu_only(name):
    with pytest.raises(BackendUnavailableError, match=f"on the CPU, not on {name}"):
        backends.choose("native", torch.device(name), torch.float32)


@extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.int16], ids=str)
def test_the_row_stride_is_no_multiple_of_a_page(dtype):
    for width in (1, 16, 350, 1024, 2048, 4096, 8192):
        stride = tiling.stride_of(width, dtype)
        assert stride >= width and stride * dtype.itemsize % 64 == 0
        assert stride * dtype.itemsize % 4096 != 0


@extension
def test_the_tiles_are_whole_strips_and_chunks_of_the_extension():
    assert (native.cpp.STRIP, native.cpp.CHUNK) == (tiling.STRIP, tiling.CHUNK)
    assert native.cpp.LINE == tiling.LINE
    for length, most, unit in ((13655, 4608, 512), (4609, 4608, 512), (700, 256, 32), (5, 5, 32)):
        spans = list(tiling.blocks(length, most, unit))
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all(a[1] == b[0] for a, b in pairwise(spans))
        assert all(lo % unit == 0 and 0 < hi - lo <= most for lo, hi in spans)


@extension
def test_non_finite_features_give_a_non_finite_loss():
    x = normalize(torch.randn(40, 8))
    y = x.clone()
    y[3, 2] = torch.nan
    assert fused_mfh_loss(x, y, (2, 2), logit_scale=10.0, backend="native").isnan()
