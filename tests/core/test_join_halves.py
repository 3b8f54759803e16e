"""The halves of two runs as one list."""

import pytest
import torch

from mxm_kernels.core.join_halves import join_halves

# Among them halves of nothing.
LENGTHS = [2500, 7, 1, 1024, 1025, 300, 40, 2000]
CUTS = [1300, 0, 1, 1024, 1, 300, 17, 0]


def _halves(dtype=torch.float32):
    return [[torch.randn(n).to(dtype) for n in LENGTHS] for _ in range(2)]


@pytest.mark.parametrize("count", [1, 2, 6, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_and_gradients(count, dtype):
    first, second = (half[:count] for half in _halves(dtype))
    leaves = [v.requires_grad_() for v in first + second]
    made = join_halves(first, second, CUTS[:count])
    upstream = [torch.randn_like(v) for v in made]
    torch.autograd.backward(made, upstream)
    for k, (v, d, cut) in enumerate(zip(made, upstream, CUTS, strict=False)):
        assert torch.equal(v, torch.cat([first[k][:cut], second[k][cut:]]))
        a, z = leaves[k].grad, leaves[k + count].grad
        assert torch.equal(a[:cut], d[:cut]) and not bool(a[cut:].any())
        assert torch.equal(z[cut:], d[cut:]) and not bool(z[:cut].any())


def test_what_is_not_finite_stays_in_its_half():
    first, second = _halves()
    a, z = (v[0].requires_grad_() for v in (first, second))
    with torch.no_grad():
        a[CUTS[0] :], z[: CUTS[0]] = torch.nan, -torch.inf
        a[0] = -torch.inf
    (made,) = join_halves([a], [z], CUTS[:1])
    assert made[0] == -torch.inf and bool(made[1:].isfinite().all())
    d = torch.randn_like(made)
    d[0], d[-1] = torch.nan, torch.inf
    made.backward(d)
    assert int(a.grad.isfinite().logical_not().sum()) == 1
    assert int(z.grad.isfinite().logical_not().sum()) == 1


def test_vectors_without_a_gradient():
    """A vector that needs none has none, and one that is not read costs the others nothing."""
    first, second = _halves()
    first[0].requires_grad_()
    second[2].requires_grad_()
    made = join_halves(first, second, CUTS)
    assert [v.requires_grad for v in made] == [True, False, True, *[False] * 5]
    made[0].sum().backward()
    assert int(first[0].grad.sum()) == CUTS[0] and second[2].grad is None


def test_gradients_in_any_layout():
    first, second = _halves()
    leaf = first[0].requires_grad_()
    (made,) = join_halves([leaf], [second[0]], CUTS[:1])
    made.sum().backward()  # whose gradient is one number, expanded
    assert int(leaf.grad.sum()) == CUTS[0]
