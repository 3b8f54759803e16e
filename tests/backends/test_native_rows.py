"""The losses of the rows in C++: levels of instruction set, long segments, threads."""

import pytest
import torch

from mxm_kernels.backends import native
from mxm_kernels.backends.row_interface import FusedFormula, RowLosses, RowProblem

LEVELS = native.cpp.levels() if native.cpp is not None else []
FORMULAS = native.cpp.FORMULAS if native.cpp is not None else []
pytestmark = pytest.mark.skipif(native.cpp is None, reason="built without a compiler")


def _problem(rows: int, most: int) -> RowProblem:
    """Rows of up to ``most`` positives, every third without one, the second without a negative."""
    g = torch.Generator().manual_seed(0)
    counts = torch.randint(1, most + 1, (rows,), generator=g)
    counts[::3] = 0
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    n = 4 * torch.randn(rows, generator=g)
    n[1] = -torch.inf
    weights = torch.rand(2, rows, generator=g)
    positives = int(offsets[-1])
    return RowProblem(
        n,
        4 * torch.randn(positives, generator=g),
        torch.randn(rows, generator=g),
        3 + torch.rand(rows, generator=g),
        40 * torch.randn(rows, generator=g),
        torch.rand(positives, generator=g),
        *weights,
        torch.randint(1, 100, (rows,), generator=g).float(),
        offsets,
        torch.repeat_interleave(counts),
    )


def _run(level: str, problem: RowProblem, formula: str) -> RowLosses:
    """Smoothed, where the formula is ever smoothed."""
    if formula in ("logsumexp", "soft"):
        problem = problem._replace(neg_sum=problem.neg_sum[:0])
    return native._Native(level).row_losses(problem, FusedFormula(formula, 0.1, 0.6, 0.4, 0.2))


@pytest.mark.parametrize("most", [3, 70])
@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("level", LEVELS[1:])
def test_levels_agree(level, formula, most):
    """The first of them is the backend's, which the tests of the operator hold to float64."""
    problem = _problem(100, most)
    for a, b in zip(*(_run(k, problem, formula) for k in (level, LEVELS[0])), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_a_row_is_computed_alone(level):
    """Vectors reach beyond a row: what stands there, NaN too, changes nothing."""
    problem = _problem(30, 5)
    expected = _run(level, problem, "debiased")
    spoiled = problem._replace(
        positives=problem.positives.clone(), pair_weights=problem.pair_weights.clone()
    )
    last = int(problem.offsets[20])
    spoiled.positives[last:] = spoiled.pair_weights[last:] = torch.nan
    made = _run(level, spoiled, "debiased")
    assert not made.losses[20:][problem.offsets.diff()[20:] > 0].isfinite().any()
    kept = {"losses": 20, "d_neg_lse": 20, "d_positives": last, "d_neg_sum": 20}
    for name, length in kept.items():
        assert torch.equal(getattr(made, name)[:length], getattr(expected, name)[:length])


@pytest.mark.parametrize("formula", FORMULAS)
def test_any_number_of_threads_gives_the_same_bits(formula):
    problem, threads, made = _problem(3000, 9), torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            made.append(_run(LEVELS[0], problem, formula))
    finally:
        torch.set_num_threads(threads)
    for other in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0], other, strict=True))


def test_an_unknown_formula_is_an_error():
    with pytest.raises(ValueError, match="no formula margin"):
        _run(LEVELS[0], _problem(3, 2), "margin")
