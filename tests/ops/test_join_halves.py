"""The operator that joins the halves of two runs."""

import pytest
import torch

from mxm_kernels.ops.join_halves import join_halves

# More than a block of a launch, more vectors than one takes, and halves of nothing.
LENGTHS = [2500, 7, 1, 1024, 1025, 300, 40, 2000]
CUTS = [1300, 0, 1, 1024, 1, 300, 17, 0]


def _halves(backend, dtype=torch.float32):
    return [[torch.randn(n).to(backend.device, dtype) for n in LENGTHS] for _ in range(2)]


@pytest.mark.parametrize("count", [1, 2, 6, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_and_gradients(count, dtype, backend):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} does not take {dtype}")
    first, second = (half[:count] for half in _halves(backend, dtype))
    leaves = [v.requires_grad_() for v in first + second]
    made = join_halves(first, second, CUTS[:count], backend.name)
    upstream = [torch.randn_like(v) for v in made]
    torch.autograd.backward(made, upstream)
    for k, (v, d, cut) in enumerate(zip(made, upstream, CUTS, strict=False)):
        assert torch.equal(v, torch.cat([first[k][:cut], second[k][cut:]]))
        a, z = leaves[k].grad, leaves[k + count].grad
        assert torch.equal(a[:cut], d[:cut]) and not bool(a[cut:].any())
        assert torch.equal(z[cut:], d[cut:]) and not bool(z[:cut].any())


def test_what_is_not_finite_stays_in_its_half(backend):
    first, second = _halves(backend)
    a, z = (v[0].requires_grad_() for v in (first, second))
    with torch.no_grad():
        a[CUTS[0] :], z[: CUTS[0]] = torch.nan, -torch.inf
        a[0] = -torch.inf
    (made,) = join_halves([a], [z], CUTS[:1], backend.name)
    assert made[0] == -torch.inf and bool(made[1:].isfinite().all())
    d = torch.randn_like(made)
    d[0], d[-1] = torch.nan, torch.inf
    made.backward(d)
    assert int(a.grad.isfinite().logical_not().sum()) == 1
    assert int(z.grad.isfinite().logical_not().sum()) == 1


def test_vectors_without_a_gradient(backend):
    """A vector that needs none has none, and one that is not read costs the others nothing."""
    first, second = _halves(backend)
    first[0].requires_grad_()
    second[2].requires_grad_()
    made = join_halves(first, second, CUTS, backend.name)
    assert [v.requires_grad for v in made] == [True, False, True, *[False] * 5]
    made[0].sum().backward()
    assert int(first[0].grad.sum()) == CUTS[0] and second[2].grad is None


def test_gradients_in_any_layout(backend):
    first, second = _halves(backend)
    leaf = first[0].requires_grad_()
    (made,) = join_halves([leaf], [second[0]], CUTS[:1], backend.name)
    made.sum().backward()  # whose gradient is one number, expanded
    assert int(leaf.grad.sum()) == CUTS[0]


def test_contract_with_pytorch(backend):
    first, second = _halves(backend)
    arguments = first, second, CUTS, [min(c + 3, n) for c, n in zip(CUTS, LENGTHS, strict=True)]
    torch.library.opcheck(torch.ops.mxm_kernels.join_halves.default, (*arguments, backend.name))


def test_second_derivatives_are_refused(backend):
    first, second = _halves(backend)
    leaf = first[0].requires_grad_()
    (made,) = join_halves([leaf], [second[0]], CUTS[:1], backend.name)
    (grad,) = torch.autograd.grad((made**2).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()
