"""The operator of CWCL's mean target: its matrix K against the definition in float64."""

import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels.ops.target_matrix import target_matrix

ROWS = COLS = 64  # a tile of the kernels
PARTS = 16  # tiles whose sums they read at a time
SHAPES = {
    "one pair": (1, 1),
    "one tile": (5, 7),
    "whole tiles": (2 * ROWS, 2 * COLS),
    "tails": (ROWS + 3, 2 * COLS + 1),
    "one row of more tiles than are read at a time": (1, (PARTS + 2) * COLS - 5),
    "one column of them": ((PARTS + 2) * ROWS - 5, 1),
}
a_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def _given(shape, D=4, dtype=torch.float64):
    M, N = shape
    features = (normalize(torch.randn(n, D, dtype=torch.float64)) for n in shape)
    return [f.to(dtype) for f in (*features, torch.rand(M + N, dtype=torch.float64))]


def _defined(a, b, factors):
    w = 1 + a.double() @ b.double().T
    f_rows, f_cols = factors.double().split([len(a), len(b)])
    return w * (f_rows[:, None] / w.sum(1, keepdim=True) + f_cols / w.sum(0))


def _made(given, backend):
    return target_matrix(*(v.to(backend.device) for v in given), backend.name).cpu()


@a_shape
def test_values(shape, backend):
    given = _given(shape, dtype=torch.float32)
    torch.testing.assert_close(
        _made(given, backend).double(), _defined(*given), rtol=1e-5, atol=1e-6
    )


@a_shape
def test_every_row_and_column_has_its_share(shape, backend):
    """K sums up to the sum of the factors, whatever the features are."""
    given = _given(shape, dtype=torch.float32)
    total = float(_made(given, backend).double().sum())
    assert total == pytest.approx(float(given[2].double().sum()), rel=1e-5)


def test_a_row_opposite_to_all_columns_adds_nothing(backend):
    """Its own factor times 0 over 0, and a share of 0 in each column; a factor of 0 is no NaN."""
    a, b, factors = _given((ROWS + 2, COLS + 2), dtype=torch.float32)
    b[:] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    a[3], a[ROWS + 1] = -b[0], -b[0]
    factors[3] = 0
    K = _made((a, b, factors), backend)
    assert not K[[3, ROWS + 1]].any()
    others = [i for i in range(len(a)) if i not in (3, ROWS + 1)]
    expected = _defined(a[others], b, torch.cat([factors[others], factors[len(a) :]]))
    torch.testing.assert_close(K[others].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("place", ["a", "b", "factors"])
def test_what_is_not_finite_shows(place, value, backend):
    given = _given((ROWS + 3, COLS + 3), dtype=torch.float32)
    changed = dict(zip(("a", "b", "factors"), given, strict=True))[place]
    changed.view(-1)[ROWS] = value
    K = _made(given, backend)
    row = {"a": K[ROWS // 4], "b": K[:, ROWS // 4], "factors": K[ROWS]}[place]
    assert not row.isfinite().any()


@pytest.mark.parametrize("place", [0, 1], ids=["a", "b"])
def test_a_feature_of_nan_is_in_every_sum_of_the_other_side(place, backend):
    given = _given((ROWS + 3, COLS + 3), dtype=torch.float32)
    given[place][5, 0] = torch.nan
    assert _made(given, backend).isnan().all()


def test_two_runs_give_the_same_bits(backend):
    given = _given((3 * ROWS + 5, 2 * COLS + 9), dtype=torch.float32)
    assert torch.equal(_made(given, backend), _made(given, backend))


def test_float64_on_the_backend_that_takes_it():
    given = _given((9, 7))
    torch.testing.assert_close(target_matrix(*given, "blocked"), _defined(*given))


def test_contract_with_pytorch(backend):
    given = [v.to(backend.device) for v in _given((5, 7), dtype=torch.float32)]
    torch.library.opcheck(torch.ops.mxm_kernels.target_matrix.default, (*given, backend.name))
