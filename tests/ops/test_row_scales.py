"""The operator of a scale for each row: features times their scales, in one launch."""

import pytest
import torch

from mxm_kernels.ops.row_scales import scale_rows

M, N, D, TEACHER_D = 19, 33, 300, 7  # more than a tile of rows and of columns, and less
LOW = (torch.bfloat16, torch.float16)


@pytest.fixture(params=[torch.float32, *LOW, torch.float64], ids=str)
def dtype(request, backend):
    if request.param not in backend.dtypes:
        pytest.skip(f"{backend} does not take {request.param}")
    return request.param


def _wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def _given(dtype, backend, sizes=(M, N), depth=D):
    """Features, scales and a teacher, with leaves that want gradients."""
    features = tuple(torch.randn(n, depth).to(backend.device, dtype) for n in sizes)
    scales = tuple((9 * torch.rand(n) + 1).to(backend.device, _wide(dtype)) for n in sizes)
    teacher = tuple(torch.randn(n, TEACHER_D).to(backend.device, dtype) for n in sizes)
    return features, scales, teacher


def _learned(*pairs):
    return [v.requires_grad_() for pair in pairs for v in pair]


@pytest.mark.parametrize("depth", [D, 5, 256])
def test_values_are_the_products_rounded_once(depth, dtype, backend):
    features, scales, teacher = _given(dtype, backend, depth=depth)
    t = torch.full((), 3.0, dtype=_wide(dtype), device=backend.device)
    for teacher_scales in (scales, (t, t)):
        made = scale_rows(features, scales, teacher, teacher_scales, backend.name)
        for z, x, s in zip(made.scaled, features, scales, strict=True):
            assert torch.equal(z, (x.to(s.dtype) * s[:, None]).to(dtype))
        for z, a, s in zip(made.teacher, teacher, teacher_scales, strict=True):
            rows = s.expand(len(a))[:, None]
            assert torch.equal(z, (a.to(s.dtype) * rows).to(dtype))
        assert all(map(torch.equal, made.plain, features))
        assert made.one.dtype == _wide(dtype) and made.one.shape == () and made.one == 1


def test_gradients_of_both_readers_are_added_before_they_are_rounded(dtype, backend):
    features, scales, _ = _given(dtype, backend)
    leaves = _learned(features, scales)
    made = scale_rows(features, scales, None, scales, backend.name)
    upstream = [torch.randn_like(v) for v in (*made.plain, *made.scaled)]
    torch.autograd.backward([*made.plain, *made.scaled], upstream)
    dx, dy, *dz = (d.double() for d in upstream)
    for k, plain in enumerate((dx, dy)):
        x, s = features[k].detach().double(), scales[k].detach().double()
        exact = plain + s[:, None] * dz[k]
        assert leaves[k].grad.dtype == dtype and leaves[k + 2].grad.dtype == scales[k].dtype
        rounding = 0.51 * torch.finfo(dtype).eps * exact.abs()
        terms = 4 * torch.finfo(_wide(dtype)).eps * (plain.abs() + s[:, None] * dz[k].abs())
        assert bool(((leaves[k].grad.double() - exact).abs() <= rounding + terms).all())
        error = (leaves[k + 2].grad.double() - (dz[k] * x).sum(1)).abs()
        assert float(error.max()) <= (1e-12 if dtype == torch.float64 else 1e-5)


def test_a_gradient_may_leave_float16_where_the_sum_does_not(backend):
    x, s = torch.ones(1, 1), torch.full((1,), 4.0)
    x, s = x.to(backend.device, torch.float16).requires_grad_(), s.to(backend.device)
    nothing = x[:0].detach(), s[:0]
    made = scale_rows((x, nothing[0]), (s, nothing[1]), None, (s, s), backend.name)
    upstream = [torch.full_like(x, value) for value in (-4e4, 2e4)]
    torch.autograd.backward([made.plain[0], made.scaled[0]], upstream)
    assert float(x.grad) == 4e4


@pytest.mark.parametrize("read", ["plain", "scaled"])
def test_a_reader_that_gives_no_gradient(read, backend):
    features, scales, _ = _given(torch.float32, backend)
    leaves = _learned(features, scales)
    x, _ = getattr(scale_rows(features, scales, None, scales, backend.name), read)
    x.sum().backward()
    expected = torch.ones(M, 1) if read == "plain" else scales[0].detach()[:, None].cpu()
    torch.testing.assert_close(leaves[0].grad.cpu(), expected.expand(M, D))
    own = features[0].detach().sum(1) if read == "scaled" else torch.zeros_like(scales[0])
    torch.testing.assert_close(leaves[2].grad, own)
    assert not bool(leaves[1].grad.any()) and not bool(leaves[3].grad.any())


@pytest.mark.parametrize("learned", [[bool(k & bit) for bit in (1, 2, 4, 8)] for k in range(16)])
def test_what_wants_no_gradient_gets_none(learned, backend):
    features, scales, teacher = _given(torch.float32, backend, depth=5)
    leaves = [*features, *scales]
    for leaf, need in zip(leaves, learned, strict=True):
        leaf.requires_grad_(need)
    made = scale_rows(features, scales, teacher, scales, backend.name)
    assert [v.requires_grad for v in made.plain] == learned[:2]
    of_scaled = [learned[k] or learned[k + 2] for k in (0, 1)]
    assert [v.requires_grad for v in made.scaled] == of_scaled
    assert not any(v.requires_grad for v in (*made.teacher, made.one))
    read = [v for v in (*made.plain, *made.scaled) if v.requires_grad]
    if read:
        sum(v.sum() for v in read).backward()
    for k, (leaf, need) in enumerate(zip(leaves, learned, strict=True)):
        assert (leaf.grad is not None) == need
        if need:
            s, x = scales[k % 2].detach(), features[k % 2].detach()
            expected = x.sum(1) if k > 1 else (1 + s)[:, None].expand_as(x)
            torch.testing.assert_close(leaf.grad, expected)


def test_a_scale_that_is_not_positive_makes_its_row_nan(dtype, backend):
    features, scales, teacher = _given(dtype, backend)
    wrong = {0: 0.0, 5: -1.0, 18: torch.nan}
    for row, value in wrong.items():
        scales[0][row] = value
    leaves = _learned(features, scales)
    made = scale_rows(features, scales, teacher, scales, backend.name)
    sum(v.sum() for v in made.scaled).backward()
    for z in (made.scaled[0], made.teacher[0], leaves[0].grad):
        bad = z.isnan()
        assert bad[list(wrong)].all() and int(bad.sum()) == len(wrong) * z.shape[1]
    for z in (made.scaled[1], made.teacher[1], leaves[1].grad):
        assert not z.isnan().any()


@pytest.mark.parametrize("sizes", [(0, N), (M, 0), (0, 0)], ids=str)
def test_a_side_without_rows(sizes, backend):
    features, scales, teacher = _given(torch.float32, backend, sizes)
    leaves = _learned(features, scales)
    made = scale_rows(features, scales, teacher, scales, backend.name)
    sum(v.sum() for v in (*made.plain, *made.scaled)).backward()
    for k in (0, 1):
        assert made.scaled[k].shape == (sizes[k], D)
        torch.testing.assert_close(made.scaled[k], features[k] * scales[k][:, None])
        torch.testing.assert_close(leaves[k + 2].grad, features[k].detach().sum(1))


def test_any_layout(backend):
    features, scales, teacher = _given(torch.float32, backend)
    strided = [v.T.contiguous().T for v in (*features, *teacher)]
    apart = tuple(torch.stack([s, -s], 1)[:, 0] for s in scales)
    made = scale_rows(tuple(strided[:2]), apart, tuple(strided[2:]), apart, backend.name)
    expected = scale_rows(features, scales, teacher, scales, backend.name)
    assert all(map(torch.equal, made.scaled + made.teacher, expected.scaled + expected.teacher))
    x, s = strided[0].requires_grad_(), apart[0].requires_grad_()
    made = scale_rows((x, features[1]), (s, scales[1]), None, scales, backend.name)
    made.scaled[0].sum().backward()  # whose gradient is one number, expanded
    torch.testing.assert_close(x.grad, s.detach()[:, None].expand(M, D))


def test_contract_with_pytorch(backend):
    features, scales, teacher = _given(torch.float32, backend)
    arguments = [*features, *teacher], [*scales, *scales], backend.name
    torch.library.opcheck(torch.ops.mxm_kernels.scale_rows.default, arguments)
    arguments = list(features), list(scales), list(features), list(features), backend.name
    torch.library.opcheck(torch.ops.mxm_kernels.scale_rows_backward.default, arguments)


def test_second_derivatives_are_refused(backend):
    features, scales, _ = _given(torch.float32, backend)
    leaf = scales[0].requires_grad_()
    made = scale_rows(features, scales, None, scales, backend.name)
    (grad,) = torch.autograd.grad((made.scaled[0] ** 2).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()
