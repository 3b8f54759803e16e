"""CWCL against its dense form: values and gradients."""

import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels import fused_cwcl_loss
from mxm_kernels.losses.cwcl_targets import (
    _is_cheaper_by_matrix,
    _products_by_matrix,
    _products_by_rank,
)
from reference.family import continuously_weighted
from tests.support.compare import assert_as_good


@pytest.mark.parametrize("rows", [(7, 7), (5, 9)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_value_and_gradients(rows, reduction, backend):
    M, N = rows
    made = [normalize(torch.randn(n, d, dtype=torch.float64)) for n, d in ((M, 6), (N, 6), (M, 4))]
    made.append(normalize(torch.randn(N, 4, dtype=torch.float64)))

    def run(dtype, fused):
        x, y, a, b = (f.to(dtype, copy=True) for f in made)
        s = torch.tensor(12.0, dtype=dtype)
        leaves = [f.requires_grad_() for f in (x, y, s)]
        if fused:
            x_, y_, a, b, s_ = (f.to(backend.device) for f in (x, y, a, b, s))
            losses = fused_cwcl_loss(
                x_, y_, logit_scale=s_, teacher_image_features=a, teacher_text_features=b,
                reduction=reduction, backend=backend.name,
            )  # fmt: skip
        else:
            S, w = s * x @ y.T, a @ b.T
            losses = continuously_weighted(S, w), continuously_weighted(S.T, w.T)
            if reduction == "mean":
                losses = (losses[0].mean() + losses[1].mean()) / 2
        value = torch.cat(losses) if reduction == "none" else losses
        value.backward(torch.linspace(0.5, 1.5, value.numel()).to(value).view(value.shape))
        return [value.detach().cpu(), *(leaf.grad for leaf in leaves)]

    expected, naive, actual = run(torch.float64, False), run(torch.float32, False), None
    actual = run(torch.float32, True)
    for name, *values in zip(("loss", "x", "y", "s"), actual, expected, naive, strict=True):
        assert_as_good(name, *values, torch.float32, magnitude=24.0)


@pytest.mark.parametrize("columns", [1, 4])
def test_columns_almost_opposite_to_a_row_keep_their_digits(columns, backend):
    """sum_j w_ij is 2e-6 of its terms, and so were the digits of the target."""
    y = normalize(torch.randn(columns, 6, dtype=torch.float64)).float()
    x = normalize(torch.randn(2, 6, dtype=torch.float64)).float()
    a = torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    b = normalize(torch.tensor([[1.0, 0.002]]) + 0.001 * torch.rand(columns, 1).mul(a[1]))

    def rows(x, y, a, b):
        S, w = 50 * x @ y.T, a @ b.T
        return continuously_weighted(S, w)

    expected = rows(*(f.double() for f in (x, y, a, b)))
    device = [f.to(backend.device) for f in (x, y, a, b)]
    actual, _ = fused_cwcl_loss(
        device[0], device[1], logit_scale=50.0, teacher_image_features=device[2],
        teacher_text_features=device[3], reduction="none", backend=backend.name,
    )  # fmt: skip
    assert float((actual.cpu().double() - expected).abs().max()) < (1e-4 if columns == 1 else 0.02)


def test_the_matrix_is_made_where_it_is_cheaper():
    features = {n: torch.empty(n, 64) for n in (150, 200, 3000)}
    assert _is_cheaper_by_matrix(features[150], features[150], features[150])
    assert not _is_cheaper_by_matrix(features[200], features[200], features[200])  # 2.7 x 64
    wide = torch.empty(3000, 4096)
    assert not _is_cheaper_by_matrix(wide, wide, wide)  # fewer operations, but 36 MB


def _products(by_matrix, backend, *tensors):
    """K y and K^T x, in one of the two ways."""
    given = [v.float().to(backend.device) for v in tensors]
    Ky, Kx = _products_by_matrix(*given, backend.name) if by_matrix else _products_by_rank(*given)
    return Ky.cpu(), Kx.cpu()


@pytest.mark.parametrize("opposite", [False, True])
@pytest.mark.parametrize("by_matrix", [True, False])
def test_both_ways_to_the_mean_target(by_matrix, opposite, backend):
    """The matrix of a small batch and the factors of others, also of columns opposite to a row."""
    x, y, a, b = (
        normalize(torch.randn(n, d, dtype=torch.float64))
        for n, d in ((7, 6), (5, 6), (7, 4), (5, 4))
    )
    if opposite:
        b = normalize(0.02 * b - a[0])
    leaves = [f.clone().requires_grad_() for f in (x, y)]
    products_of, w = leaves[0] @ leaves[1].T, 1 + a @ b.T
    rows, cols = ((w * products_of).sum(k) / w.sum(k) for k in (1, 0))
    expected = torch.autograd.grad(-0.3 * rows.mean() - 0.7 * cols.mean(), leaves)
    factors = torch.tensor([-0.3 / 7] * 7 + [-0.7 / 5] * 5)
    actual = _products(by_matrix, backend, x, y, a, b, factors)
    # 1 + <a, b> of an opposite column is 2e-4, and has eps of 1.
    allowed = 5e-3 if opposite else 1e-6
    for made, wanted in zip(actual, expected, strict=True):
        assert float((made - wanted).norm() / wanted.norm()) < allowed


@pytest.mark.parametrize("by_matrix", [True, False])
def test_a_row_of_weight_zero_opposite_to_all_columns_adds_nothing(by_matrix, backend):
    """0 over 0."""
    x, y, one = torch.randn(4, 6), torch.randn(3, 6), torch.tensor([1.0, 0.0])
    a, b = torch.stack([-one, *normalize(torch.randn(3, 2))]), one.expand(3, 2)
    factors = torch.arange(7) / 7
    made = _products(by_matrix, backend, x, y, a, b, factors)
    Ky, Kx = _products(by_matrix, backend, x[1:], y, a[1:], b, factors[1:])
    torch.testing.assert_close(made, (torch.cat([torch.zeros(1, 6), Ky]), Kx))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_lone_column_has_loss_zero_whatever_the_scale_rounds_to(dtype, backend):
    """The target is of the same S as the log-sum-exp."""
    made = [normalize(torch.randn(n, 6)).to(backend.device, dtype) for n in (5, 1, 5, 1)]
    scales = tuple(50 + 50 * torch.rand(n, device=backend.device) for n in (5, 1))
    rows, _ = fused_cwcl_loss(
        made[0], made[1], logit_scale=scales, teacher_image_features=made[2],
        teacher_text_features=made[3], reduction="none", backend=backend.name,
    )  # fmt: skip
    assert float(rows.abs().max()) < 1e-4


def test_a_similarity_of_one_everywhere_is_uniform_smoothing():
    x, y = normalize(torch.randn(6, 4)), normalize(torch.randn(6, 4))
    one = torch.ones(6, 1)
    loss = fused_cwcl_loss(
        x, y, logit_scale=5.0, teacher_image_features=one, teacher_text_features=one
    )
    S = 5 * x @ y.T
    uniform = -(S.log_softmax(1).mean() + S.T.log_softmax(1).mean()) / 2
    torch.testing.assert_close(loss, uniform)


def test_bad_arguments():
    x = normalize(torch.randn(4, 4))
    with pytest.raises(ValueError, match="needs teacher_image_features"):
        fused_cwcl_loss(x, x, logit_scale=1.0)
    teacher = {"teacher_image_features": x, "teacher_text_features": x}
    with pytest.raises(TypeError, match="takes no text_queue"):
        fused_cwcl_loss(x, x, logit_scale=1.0, text_queue=x, **teacher)
