"""The operators over rows and pairs: the loss algebra's numbers in one call."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mxm_kernels.algebra.direction import Direction
from mxm_kernels.algebra.losses import FORMS, DebiasedRows, soft_rows

from mxm_kernels import Folds
from mxm_kernels.backends.draws import draw_places
from mxm_kernels.backends.interface import Draw, Form, RowProblem
from mxm_kernels.folds.segments import Segments
from mxm_kernels.ops.row_losses import drawn_weights, mixed_rows
from tests.support.cases import cases
from tests.support.compare import error


def _rows(case, spread: float, no_negative: bool):
    """n, S, u, weights in float64 and the segments of a batch's image rows."""
    tables = Folds.from_ids(*case.ids).tables(
        len(case.image_ids), len(case.text_ids), torch.device("cpu")
    )
    g = torch.Generator().manual_seed(case.seed)
    M, P = tables.images, tables.pairs
    n, u = (spread * torch.randn(M, generator=g, dtype=torch.float64) for _ in range(2))
    S = spread * torch.randn(P, generator=g, dtype=torch.float64)
    weights = torch.rand(P, generator=g, dtype=torch.float64)
    if no_negative:
        n[tables.image_offsets.diff() > 0] = -torch.inf
    return (n, S, u, weights), Segments(tables.image_offsets, tables.pair_images)


COLUMNS, PRIOR = 40, 0.05  # more than a row has positives
FORMULAS = {form.name: formula for formula, form in FORMS.items()}
FORMULAS["debiased"] = DebiasedRows(PRIOR)


def _algebra(vectors, segments, form, hard, soft):
    n, S, u, scale, weights = vectors
    d = Direction(
        n=n, S=S, u=u, t=u, m=u, h=u, backend="blocked", segments=segments, scale=scale,
        columns=COLUMNS, with_positive=1,
    )  # fmt: skip
    losses = n.clamp(min=0) * 0 if form == "none" else FORMULAS[form](d, weights)
    return hard * losses + (soft * soft_rows(d) if bool((soft != 0).any()) else 0)


@settings(max_examples=150)
@given(
    case=cases(30),
    spread=st.sampled_from([0.1, 3.0, 100.0]),
    form=st.sampled_from(list(FORMULAS)),
    shares=st.sampled_from([(1.0, 0.0), (0.6, 0.4), (0.0, 1.0), (1e-4, 2e-4)]),
    no_negative=st.booleans(),
    weighted=st.booleans(),
)
def test_mixed_rows(backend, case, spread, form, shares, no_negative, weighted):
    vectors, segments = _rows(case, spread, no_negative)
    scale = torch.tensor(spread, dtype=torch.float64)
    g = torch.Generator().manual_seed(case.seed + 1)
    of_rows = torch.rand(2, len(vectors[0]) if weighted else 0, generator=g, dtype=torch.float64)
    results = []
    for dtype, fused in ((torch.float32, True), (torch.float64, False), (torch.float32, False)):
        n, S, u, weights = (v.to(dtype) for v in vectors)
        leaves = [v.clone().requires_grad_() for v in (n, S, u, scale.to(dtype))]
        if fused:
            where = backend.device
            *on, s = (v.to(where) for v in leaves)
            offsets, owners = (v.to(where) for v in segments)
            of_all = of_rows.to(where, dtype)
            problem = RowProblem(*on, weights.to(where), offsets, *of_all, s)
            hard, soft = shares[0] * 7, shares[1] * 3
            losses = mixed_rows(
                problem, owners, Form(form, PRIOR), backend.name, hard=hard, soft=soft,
                counts=(7, 3), columns=COLUMNS,
            )  # fmt: skip
        else:
            own = of_rows.to(dtype) if weighted else torch.ones(2, 1, dtype=dtype)
            losses = _algebra(
                (*leaves, weights), segments, form, shares[0] * own[0], shares[1] * own[1]
            )
        g = torch.Generator().manual_seed(1)
        losses.backward(torch.randn(losses.shape, generator=g, dtype=torch.float64).to(losses))
        grads = [torch.zeros_like(v) if v.grad is None else v.grad for v in leaves]
        results.append([losses.detach().cpu(), *grads])
    actual, expected, naive = results
    # An exponential is off by the rounding of its argument, which the naive one may be spared.
    floor = max(1e-6, spread * torch.finfo(torch.float32).eps / 2)
    for a, e, plain in zip(actual, expected, naive, strict=True):
        allowed = max(2 * error(plain, e), floor * float(e.norm()), 1e-6 * shares[0])
        assert error(a, e) <= allowed


@pytest.mark.parametrize("form", FORMULAS)
@pytest.mark.parametrize("soft", [0.0, 0.4])
@pytest.mark.parametrize("weighted", [False, True])
def test_contract_with_pytorch(weighted, soft, form, backend):
    (n, S, u, weights), segments = _rows(_case(), 2.0, False)
    vectors = [v.float().to(backend.device) for v in (n, S, u, weights)]
    offsets, owners = (v.to(backend.device) for v in segments)
    for v in vectors[:3]:
        v.requires_grad_()
    of_rows = torch.rand(2, len(n) if weighted else 0, device=backend.device)
    scale = torch.tensor(2.0, device=backend.device, requires_grad=True)
    numbers = PRIOR, 0.6, soft, 5, 7, COLUMNS
    arguments = (*vectors, offsets, *of_rows, scale, owners, form, *numbers, backend.name)
    torch.library.opcheck(torch.ops.mxm_kernels.mixed_rows.default, arguments)
    seed = torch.randint(2**63 - 1, (), device=backend.device)
    draw = Draw(seed, offsets, offsets, 3, len(S))
    arguments = (*draw, torch.float32, backend.name)
    torch.library.opcheck(torch.ops.mxm_kernels.drawn_weights.default, arguments)


def _case():
    from tests.support.cases import NAMED_CASES

    return NAMED_CASES["rows without positives"]


def test_second_derivatives_are_refused():
    (n, S, u, weights), segments = _rows(_case(), 2.0, False)
    n.requires_grad_()
    none, scale = n.new_empty(0), n.new_ones(())
    problem = RowProblem(n, S, u, weights, segments.offsets, none, none, scale)
    losses = mixed_rows(problem, segments.owners, Form("masked"), "blocked", hard=0.5, soft=0.5)
    (grad,) = torch.autograd.grad(losses.sum(), n, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()


def _split_mix(seed: int, count: int) -> int:
    """Number ``count`` of SplitMix64 from ``seed``, in Python's integers."""
    z = (seed + count * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_the_oracle_of_the_numbers_is_split_mix():
    """The first numbers of its published test."""
    numbers = [_split_mix(1234567, k) for k in (1, 2, 3)]
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("rounds", [1, 2, 7, 150])  # 150: more than a kernel draws together
@pytest.mark.parametrize("seed", [0, 5, 2**63 - 1])
def test_draws_are_the_same_everywhere(rounds, seed, backend):
    sides = torch.tensor([0, 3, 3, 4, 9]), torch.tensor([0, 0, 2, 9])
    draw = Draw(torch.tensor(seed), *sides, rounds, 9)
    on = draw._replace(**{f: getattr(draw, f).to(backend.device) for f in draw._fields[:3]})
    weights = drawn_weights(on, torch.float32, backend.name)
    first, rows = 0, sum(len(offsets) - 1 for offsets in sides)
    for offsets, got in zip(sides, weights, strict=True):
        expected = torch.zeros(9)
        for i, (start, end) in enumerate(pairwise(offsets.tolist())):
            for turn in range(rounds):
                number = _split_mix(seed, turn // 2 * rows + first + i + 1)
                half = number >> 32 if turn % 2 else number % 2**32
                if start < end:
                    expected[start + half * (end - start) // 2**32] += 1
        torch.testing.assert_close(got.cpu(), expected / rounds)
        first += len(offsets) - 1


def test_more_rounds_begin_with_the_same_ones():
    offsets = torch.tensor([0, 3, 3, 4, 9])
    few, many = (
        draw_places(Draw(torch.tensor(3), offsets, offsets, rounds, 9)) for rounds in (3, 8)
    )
    assert all(torch.equal(a, b[:3]) for a, b in zip(few, many, strict=True))
