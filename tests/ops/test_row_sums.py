"""The sums of S over whole rows: those of the dense matrix, and their gradients."""

import pytest
import torch

from mxm_kernels.ops.row_sums import with_row_sums
from tests.support.compare import error

# Rows and columns of more than one tile, of less than one, of none.
SHAPES = {
    "ragged": (37, 150, 130),
    "one": (1, 1, 1),
    "narrow": (300, 2, 3),
    "no images": (0, 5, 8),
    "no texts": (6, 0, 8),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _features(M, N, D, dtype, device="cpu"):
    """x (M, D), y (N, D) and the scale, with gradients that come from elsewhere, and those of r."""
    g = torch.Generator().manual_seed(M + N)
    x, y, dx, dy = (
        torch.randn(n, D, generator=g, dtype=torch.float64).to(dtype) for n in (M, N, M, N)
    )
    grad = torch.randn(M + N, generator=g, dtype=torch.float64)
    scale = torch.tensor(1.7, dtype=torch.float64)
    return [v.to(device) for v in (x, y, scale, dx, dy, grad)]


def _differentiated(made, leaves, dx, dy, grad):
    """The gradients of sum dx x + sum dy y + 3 s + <grad, r>."""
    x, y, s, r = made
    total = (x.to(dx) * dx).sum() + (y.to(dy) * dy).sum() + 3 * s + (r * grad.to(r)).sum()
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients(shape, dtype, backend):
    x, y, s, dx, dy, grad = _features(*shape, dtype, backend.device)
    wide = [v.double().requires_grad_() for v in (x, y, s)]
    S = wide[2] * wide[0] @ wide[1].T
    expected = _differentiated((*wide, torch.cat([S.sum(1), S.sum(0)])), wide, dx, dy, grad)
    leaves = [x.requires_grad_(), y.requires_grad_(), s.float().requires_grad_()]
    made = with_row_sums(*leaves, backend.name)
    assert all(torch.equal(a, b) for a, b in zip(made[:3], leaves, strict=True))
    assert made[3].dtype == torch.float32
    torch.testing.assert_close(
        made[3].double(), torch.cat([S.sum(1), S.sum(0)]).detach(), rtol=1e-5, atol=1e-4
    )
    for actual, full in zip(_differentiated(made, leaves, dx, dy, grad), expected, strict=True):
        bound = torch.finfo(actual.dtype).eps if actual.ndim else 1e-5
        assert error(actual.cpu(), full.cpu()) <= max(bound, 1e-5) * max(1.0, float(full.norm()))


def test_float64_has_its_own_accumulator():
    x, y, s, *_ = _features(5, 7, 3, torch.float64)
    (*_, r) = with_row_sums(x, y, s, "blocked")
    S = s * x @ y.T
    torch.testing.assert_close(r, torch.cat([S.sum(1), S.sum(0)]), rtol=1e-14, atol=1e-14)


def test_rows_that_are_strided(backend):
    x, y, s, *_ = _features(9, 4, 6, torch.float32, backend.device)
    wide = torch.stack([x, x], 2)[..., 0]
    assert not wide.is_contiguous()
    for made, expected in zip(
        with_row_sums(wide, y, s.float(), backend.name),
        with_row_sums(x, y, s.float(), backend.name),
        strict=True,
    ):
        assert torch.equal(made, expected)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient_and_costs_none(frozen, backend):
    x, y, s, dx, dy, grad = _features(9, 4, 6, torch.float32, backend.device)
    every = [v.detach().clone().requires_grad_() for v in (x, y, s.float())]
    expected = _differentiated(with_row_sums(*every, backend.name), every, dx, dy, grad)
    leaves = [v.detach().requires_grad_(k != frozen) for k, v in enumerate(every)]
    made = with_row_sums(*leaves, backend.name)
    assert [v.requires_grad for v in made] == [k != frozen for k in range(3)] + [True]
    wanted = [v for v in leaves if v.requires_grad]
    kept = [g for k, g in enumerate(expected) if k != frozen]
    actual = _differentiated(made, wanted, dx, dy, grad)
    assert all(torch.equal(a, b) for a, b in zip(actual, kept, strict=True))


def test_without_any_other_gradient(backend):
    x, y, s, *_, grad = _features(9, 4, 6, torch.float32, backend.device)
    leaves = [x.requires_grad_(), y.requires_grad_(), s.float().requires_grad_()]
    (*_, r) = with_row_sums(*leaves, backend.name)
    dx, dy, ds = torch.autograd.grad(r, leaves, grad.float())
    g, s = grad.float(), leaves[2].detach()
    torch.testing.assert_close(dx, s * (g[:9, None] * y.sum(0) + g[9:] @ y).detach())
    torch.testing.assert_close(dy, s * (g[9:, None] * x.sum(0) + g[:9] @ x).detach())
    torch.testing.assert_close(ds, (g @ r / s).detach())


def test_a_gradient_of_the_features_alone_passes(backend):
    x, y, s, dx, *_ = _features(9, 4, 6, torch.float32, backend.device)
    leaves = [x.requires_grad_(), y.requires_grad_(), s.float().requires_grad_()]
    passed, *_ = with_row_sums(*leaves, backend.name)
    given = torch.autograd.grad(passed, leaves, dx, allow_unused=True)
    assert torch.equal(given[0], dx) and given[1] is None and given[2] is None


def test_second_derivatives_are_refused(backend):
    x, y, s, *_ = _features(9, 4, 6, torch.float32, backend.device)
    (*_, r) = with_row_sums(x.requires_grad_(), y, s.float(), backend.name)
    (dx,) = torch.autograd.grad(r.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        dx.sum().backward()


@pytest.mark.parametrize("weighted", [True, False])
def test_contract_with_pytorch(weighted, backend):
    x, y, s, dx, dy, grad = _features(9, 4, 6, torch.float32, backend.device)
    run, s, grad = torch.ops.mxm_kernels, s.float(), grad.float()
    weights = grad if weighted else grad[:0]
    check = torch.library.opcheck
    check(run.feature_sums.default, (x, y, weights, backend.name))
    sums = run.feature_sums(x, y, weights, backend.name)
    check(run.row_sums.default, (x, y, s, sums, backend.name))
    made = run.row_sums(x, y, s, sums, backend.name)
    arguments = (dx, dy, s.clone(), s, sums, made, 9, grad, sums, backend.name)
    check(run.row_sums_backward.default, arguments)
