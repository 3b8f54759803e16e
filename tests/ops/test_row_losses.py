"""The operator of the fused formulas: a kernel's numbers are those of ``core/formulas.py``."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mxm_kernels import backends
from mxm_kernels.backends.row_interface import FusedFormula, RowProblem
from mxm_kernels.core import formulas
from mxm_kernels.core.batch import make_batch
from mxm_kernels.core.row_losses import row_losses as unfused
from mxm_kernels.core.rows import Rows
from mxm_kernels.ops.row_losses import row_losses
from tests.support.cases import NAMED_CASES, cases
from tests.support.compare import error

PRIOR = 0.05
FORMULAS = {
    formula.name: formula
    for formula in (
        formulas.info_nce,
        formulas.supcon_out,
        formulas.supcon_in,
        formulas.decoupled,
        formulas.logsumexp,
        formulas.soft,
        formulas.debiased(PRIOR),
    )
}
UNPAIRED = NAMED_CASES["rows without positives"]


def _rows(case, spread, no_negative=False, row_scales=False, dtype=torch.float64, smoothing=0.0):
    """A list of rows with random n, S, u, scale and sums, and random weights of its positives."""
    g = torch.Generator().manual_seed(case.seed)
    x, y, *_ = case.features(torch.float64)
    options = {"backend": "blocked"}
    batch = make_batch(x.to(dtype), y.to(dtype), case.ids, 1.0, options)
    rows, positives = len(x) + len(y), 2 * batch.tables.pairs

    def random(length):
        return spread * torch.randn(length, generator=g, dtype=torch.float64)

    n, S, u = random(rows), random(positives), random(rows)
    weights = torch.rand(positives, generator=g, dtype=torch.float64)
    scale = torch.full((rows,) if row_scales else (), float(spread), dtype=torch.float64)
    if row_scales:
        scale *= 0.5 + torch.rand(rows, generator=g, dtype=torch.float64)
    counts = batch.segments.offsets.diff()
    columns = torch.tensor([len(y)] * len(x) + [len(x)] * len(y))
    n[counts == columns] = -torch.inf
    if no_negative:
        n[counts > 0] = -torch.inf
    neg_sum = columns * random(rows)
    scales = scale.split([len(x), len(y)]) if row_scales else (scale,)
    leaves = [v.to(dtype, copy=True).requires_grad_() for v in (n, S, u, neg_sum, *scales)]
    batch = replace(batch, scales=(leaves[4], leaves[-1]))
    smoothed = {"neg_sum": leaves[3], "label_smoothing": smoothing} if smoothing else {}
    return Rows(*leaves[:3], batch.segments, batch, **smoothed), weights.to(dtype)


def _leaves(rows):
    own = rows.batch.scales[: 1 if rows.batch.one_scale else 2]
    sums = [] if rows.neg_sum is None else [rows.neg_sum]
    return [rows.neg_lse, rows.positives, rows.teacher_mean, *own, *sums]


def _problem(rows, weights, formula, hard_weights, soft_weights, soft, device):
    """What the operator takes of a list of rows."""
    nothing = rows.neg_lse.new_empty(0)
    smoothed = rows.neg_sum is not None and formula.smoothing is not None
    made = RowProblem(
        rows.neg_lse,
        rows.positives,
        rows.teacher_mean if soft or formula.name == "soft" else nothing,
        nothing if formula.parameter is None else rows.logit_scale,
        rows.neg_sum if smoothed else nothing,
        weights if formula.weighs else nothing,
        hard_weights,
        soft_weights,
        rows.num_negatives if formula.reads_negatives or smoothed else nothing,
        *rows.segments,
    )
    return RowProblem(*(v.to(device) for v in made))


def _fused(rows, weights, formula, hard, hard_weights, soft, soft_weights, backend):
    factors = hard_weights.to(weights), soft_weights.to(weights)
    problem = _problem(rows, weights, formula, *factors, soft, backend.device)
    constants = formula.name, formula.constant or 0.0, hard, soft, rows.label_smoothing
    return row_losses(problem, FusedFormula(*constants), backend.name)


def _by_pytorch(rows, weights, formula, hard, hard_weights, soft, soft_weights):
    """The backend of the rows' batch has no kernel."""
    factors = hard_weights.to(weights), soft_weights.to(weights)
    return unfused(rows, formula, weights, factors[0], hard, factors[1], soft)


def _differentiated(losses, rows):
    g = torch.Generator().manual_seed(1)
    losses.backward(torch.randn(losses.shape, generator=g, dtype=torch.float64).to(losses))
    grads = [torch.zeros_like(v) if v.grad is None else v.grad for v in _leaves(rows)]
    return [losses.detach().cpu(), *grads]


def test_every_formula_of_a_kernel_is_tested(fusing):
    assert backends.load(fusing.name).fused_formulas <= set(FORMULAS)


@settings(max_examples=12)
@given(
    case=cases(30),
    spread=st.sampled_from([0.1, 3.0, 100.0]),
    factors=st.sampled_from([(1.0, 0.0), (0.6, 0.4), (0.0, 1.0), (1e-4, 2e-4)]),
    no_negative=st.booleans(),
    row_scales=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
)
@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_gradients(
    name, fusing, case, spread, factors, no_negative, row_scales, smoothing
):
    drawn = case, spread, no_negative, row_scales
    hard, soft = factors if name != "soft" else (sum(factors), 0.0)
    g = torch.Generator().manual_seed(case.seed + 1)
    length = len(case.image_ids) + len(case.text_ids)
    of_rows = torch.rand(2, length, generator=g, dtype=torch.float64)
    given_ = FORMULAS[name], hard, of_rows[0], soft, of_rows[1]
    results = []
    for dtype in (torch.float64, torch.float32):
        made = _rows(*drawn, dtype, smoothing)
        results.append(_differentiated(_by_pytorch(*made, *given_), made[0]))
    rows, weights = _rows(*drawn, torch.float32, smoothing)
    actual = _differentiated(_fused(rows, weights, *given_, fusing), rows)
    # An exponential is off by the rounding of its argument, which the naive one may be spared. And
    # float64's gradients are differences of numbers of the size of the factors.
    floor = max(1e-6, spread * torch.finfo(torch.float32).eps / 2)
    for a, expected, naive in zip(actual, *results, strict=True):
        size = float(expected.norm())
        allowed = max(2 * error(naive, expected), floor * size, 1e-6 * hard, 1e-14 * soft)
        assert error(a, expected) <= allowed


@pytest.mark.parametrize("name", ["info_nce", "supcon_out", "supcon_in", "decoupled", "debiased"])
def test_a_sum_that_is_not_a_number_shows_in_its_row_alone(name, fusing):
    rows, weights = _rows(UNPAIRED, 2.0, dtype=torch.float32, smoothing=0.1)
    spoiled = int(rows.counts.argmax())
    with torch.no_grad():
        rows.neg_sum[spoiled] = torch.nan
    losses = _of_every_row(rows, weights, FORMULAS[name], fusing)
    assert losses.isnan().nonzero().flatten().tolist() == [spoiled]


def _ones(rows):
    return torch.ones(len(rows.neg_lse))


def _of_every_row(rows, weights, formula, backend, soft=0.0):
    """By the kernel, every row counting once."""
    return _fused(rows, weights, formula, 1.0, _ones(rows), soft, _ones(rows), backend).cpu()


@pytest.mark.parametrize("name", FORMULAS)
def test_rows_without_positives(name, fusing):
    """Their loss is 0, but for what a target is yet to be taken from."""
    rows, weights = _rows(UNPAIRED, 2.0, dtype=torch.float32)
    losses, n = _of_every_row(rows, weights, FORMULAS[name], fusing), rows.neg_lse
    alone = rows.counts == 0
    assert bool(alone.any()) and not bool(alone.all())
    expected = {"logsumexp": n, "soft": n - rows.teacher_mean}.get(name, torch.zeros_like(n))
    torch.testing.assert_close(losses[alone], expected[alone])
    losses.sum().backward()
    by_n = 1.0 if FORMULAS[name].of_every_row else 0.0
    assert bool((n.grad[alone] == by_n).all())


@pytest.mark.parametrize(
    ("name", "smoothing"),
    [
        *itertools.product(["info_nce", "decoupled", "debiased"], [0.0, 0.1]),
        ("supcon_in", 0.0),
    ],
)
def test_rows_without_negatives_have_loss_zero(name, smoothing, fusing):
    case = NAMED_CASES["a single instance"]
    rows, weights = _rows(case, 2.0, True, dtype=torch.float32, smoothing=smoothing)
    losses = _of_every_row(rows, weights, FORMULAS[name], fusing)
    losses.sum().backward()
    assert not losses.any()
    assert all(leaf.grad is None or not leaf.grad.any() for leaf in _leaves(rows))


@pytest.mark.parametrize("soft", [0.0, 0.5])
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_normaliser_that_is_not_a_number_shows_in_its_row_alone(name, paired, soft, fusing):
    rows, weights = _rows(UNPAIRED, 2.0, dtype=torch.float32)
    spoiled = int((rows.counts > 0).int().argmax() if paired else rows.counts.argmin())
    with torch.no_grad():
        rows.neg_lse[spoiled] = torch.nan
    losses = _of_every_row(rows, weights, FORMULAS[name], fusing, soft)
    assert losses.isnan().nonzero().flatten().tolist() == [spoiled]


@pytest.mark.parametrize("soft", [0.0, 0.5])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_positive_that_is_not_a_number_shows_in_its_row_alone(name, soft, fusing):
    rows, weights = _rows(UNPAIRED, 2.0, dtype=torch.float32)
    most = int(rows.counts.argmax())
    assert rows.counts[most] > 1
    for place in (0, 1):
        made = replace(rows, positives=rows.positives.detach().clone())
        made.positives[made.segments.offsets[most] + place] = torch.nan
        losses = _of_every_row(made, weights, FORMULAS[name], fusing, soft)
        assert losses.isnan().nonzero().flatten().tolist() == [most]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_teacher_that_is_not_a_number_shows_in_its_row_alone(name, fusing):
    rows, weights = _rows(UNPAIRED, 2.0, dtype=torch.float32)
    with torch.no_grad():
        rows.teacher_mean[1] = torch.nan
    losses = _of_every_row(rows, weights, FORMULAS[name], fusing, 0.5)
    assert losses.isnan().nonzero().flatten().tolist() == [1]


@pytest.mark.parametrize("row_scales", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize(("soft", "smoothing"), [(0.0, 0.1), (0.4, 0.0)])
def test_contract_with_pytorch(soft, smoothing, name, row_scales, fusing):
    if row_scales and FORMULAS[name].parameter is None:
        pytest.skip("a formula without a parameter reads no scale")
    rows, weights = _rows(UNPAIRED, 2.0, False, row_scales, torch.float32, smoothing)
    of_rows = torch.rand(2, len(rows.neg_lse))
    problem = _problem(rows, weights, FORMULAS[name], *of_rows, soft, fusing.device)
    leaves = [v.detach().requires_grad_(v.requires_grad) for v in problem]
    constants = name, FORMULAS[name].constant or 0.0, 0.6, soft, smoothing
    for result in ("rows", "sum", "checked rows"):
        arguments = (*leaves, *constants, fusing.name, result)
        torch.library.opcheck(torch.ops.mxm_kernels.row_losses.default, arguments)


@pytest.mark.parametrize("result", ["sum", "checked rows"])
@pytest.mark.parametrize("fault", [0.0, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_loss_that_is_not_finite_is_in_every_gradient(name, fault, result, fusing):
    rows, weights = _rows(UNPAIRED, 2.0, dtype=torch.float32, smoothing=0.1)
    factors = torch.ones(2, len(rows.neg_lse))
    factors[0, 3] += fault
    soft = 0.0 if name == "soft" else 0.4
    problem = _problem(rows, weights, FORMULAS[name], *factors, soft, fusing.device)
    given = FusedFormula(name, FORMULAS[name].constant or 0.0, 0.6, soft, 0.1)
    made = row_losses(problem, given, fusing.name, result)
    plain = row_losses(problem, given, fusing.name).detach()
    (3 * made.sum()).backward()
    found = [leaf.grad for leaf in _leaves(rows) if leaf.grad is not None]
    if fault:
        assert not made.isfinite().any()
        assert all(grad.isnan().all() for grad in found)
        return
    torch.testing.assert_close(made.detach(), plain if made.ndim else plain.sum())
    again, _ = _rows(UNPAIRED, 2.0, dtype=torch.float32, smoothing=0.1)
    problem = _problem(again, weights, FORMULAS[name], *factors, soft, fusing.device)
    (3 * row_losses(problem, given, fusing.name).sum()).backward()
    expected = [leaf.grad for leaf in _leaves(again) if leaf.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", FORMULAS)
def test_only_the_gradients_that_are_wanted(name, fusing):
    made = []
    for needed in ([True] * 4, [True, False, False, False], [False, True, True, False]):
        rows, weights = _rows(UNPAIRED, 2.0, dtype=torch.float32)
        for leaf, need in zip(_leaves(rows), needed, strict=True):
            leaf.requires_grad_(need)
        _of_every_row(rows, weights, FORMULAS[name], fusing, 0.5).sum().backward()
        made.append([leaf.grad for leaf in _leaves(rows)])
    every, *some = made
    for grads in some:
        for grad, full in zip(grads, every, strict=True):
            assert grad is None or torch.equal(grad, full)


def test_second_derivatives_are_refused(fusing):
    rows, weights = _rows(UNPAIRED, 2.0, dtype=torch.float32)
    losses = _of_every_row(rows, weights, formulas.info_nce, fusing, 0.5)
    (grad,) = torch.autograd.grad(losses.sum(), rows.neg_lse, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()


def test_upstream_gradients_that_are_strided(fusing):
    """As those of an expanded sum are: one number with stride 0."""
    grads = []
    for upstream in (lambda v: torch.full_like(v, 3.0), lambda v: v.new_tensor(3.0).expand_as(v)):
        rows, weights = _rows(UNPAIRED, 2.0, dtype=torch.float32)
        losses = _of_every_row(rows, weights, FORMULAS["debiased"], fusing, 0.5)
        losses.backward(upstream(losses))
        grads.append([leaf.grad for leaf in _leaves(rows)])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
