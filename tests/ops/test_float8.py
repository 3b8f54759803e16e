"""The teacher in float8: what is rounded, its factors at both ends of the range, the opcheck."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from mxm_kernels import Queue, fused_mfh_loss, fused_soft_loss
from mxm_kernels.ops.float8 import float8_teacher, largest_of
from tests.support.cases import in_float8

FLOAT8 = torch.float8_e4m3fn
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def rounded(a, b, t):
    return float8_teacher((a, b), t, largest_of(a, b, t.dtype))


def of(*numbers, dtype=torch.float32):
    return torch.tensor([numbers], dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype, backend):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    a, b = (torch.randn(n, 7, device=backend.device, dtype=dtype) for n in (5, 4))
    t = torch.tensor(20.0, device=backend.device, dtype=wide)
    arguments = a, b, t, largest_of(a, b, wide)
    torch.library.opcheck(torch.ops.mxm_kernels.float8_teacher.default, arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_entry_fills_the_range_and_the_scale_undoes_it(dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    a, b = (normalize(torch.randn(n, 24, dtype=wide)).to(dtype) for n in (9, 6))
    b = b * 40
    (c, d), t = rounded(a, b, torch.tensor(33.0, dtype=wide))
    for of_float8 in (c, d):
        assert of_float8.dtype == FLOAT8
        assert 224 <= of_float8.float().abs().max() <= 448
    T = 33 * in_float8(a).double() @ in_float8(b).double().T
    torch.testing.assert_close(t.double() * (c.double() @ d.double().T), T, rtol=1e-12, atol=0)


@given(exponents=st.tuples(st.integers(-126, 127), st.integers(-126, 127)))
def test_any_finite_features_stay_finite(exponents):
    """One may be as large as the other is small, and both may be either."""
    a, b = (of(1.75 * 2.0**e, -(2.0 ** (e - 1)), 0.0) for e in exponents)
    (c, d), t = rounded(a, b, torch.tensor(3.0))
    assert c.float().isfinite().all() and d.float().isfinite().all() and t.isfinite() and t > 0
    if abs(sum(exponents)) < 90 and min(exponents) > -110:
        exact = 3 * a.double() @ b.double().T
        torch.testing.assert_close(t.double() * (c.double() @ d.double().T), exact)


@pytest.mark.parametrize("largest", [448.0, 449.0, 479.9, 480.0, 511.9, 512.0, 0.21875])
def test_what_lies_next_to_the_end_of_the_range_is_not_lost(largest):
    (c, _), t = rounded(of(largest, 1.0), of(1.0, 1.0), torch.tensor(1.0))
    assert c.float().isfinite().all()
    assert math.isclose(float(t * c[0, 0].float() * 256), largest, rel_tol=2**-4)


def test_zeros_are_zeros():
    (c, d), t = rounded(of(0.0, 0.0), of(1.0, 2.0), torch.tensor(5.0))
    assert not c.float().any() and t > 0 and d.float().any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite_show_in_the_scale(bad):
    for pair in ((of(bad, 1.0), of(1.0, 1.0)), (of(1.0, 1.0), of(1.0, bad))):
        assert rounded(*pair, torch.tensor(5.0))[1].isnan()


def soft(backend, f, **options):
    x, y, a, b = f
    return fused_soft_loss(
        x, y, logit_scale=20.0, teacher_image_features=a, teacher_text_features=b,
        teacher_dtype=FLOAT8, backend=backend.name, **options,
    )  # fmt: skip


def features(backend, D=12):
    return [normalize(torch.randn(n, D)).to(backend.device) for n in (7, 9) * 2]


def test_under_autocast_the_cast_features_are_rounded(backend):
    f = features(backend)
    with torch.autocast(backend.device.type, torch.bfloat16):
        cast = soft(backend, f)
    torch.testing.assert_close(cast, soft(backend, [v.bfloat16() for v in f]))


def test_a_queue_is_rounded_with_the_teacher(backend):
    """It stands in the teacher's matrix, where its rows have the factor of their own matrix."""
    f, queue = features(backend), normalize(torch.randn(5, 12)).to(backend.device)
    found = soft(backend, f, text_queue=Queue(queue), image_to_text_weight=1.0)
    x, y, a, b = (v.cpu().double() for v in f)
    S = 20 * x @ torch.cat([y, queue.cpu().double()]).T
    columns = torch.cat([in_float8(b), in_float8(queue.cpu().double())])
    T = 20 * in_float8(a) @ columns.T
    expected = torch.nn.functional.cross_entropy(S, T.softmax(1))
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-6)


def test_it_changes_the_loss_by_little_and_nothing_where_the_teacher_is_not_read(backend):
    x, y, a, b = features(backend, 64)
    teacher = {"teacher_image_features": a, "teacher_text_features": b}
    options = {"logit_scale": 20.0, "rounds": None, "backend": backend.name}
    results = [
        [
            fused_mfh_loss(
                x, y, ([0, 1, 2, 0, 1, 2, 0], [0, 1, 2] * 3), hard_weight=share,
                teacher_dtype=dtype, **teacher, **options,
            )
            for dtype in (None, FLOAT8)
        ]
        for share in (0.5, 1.0)
    ]  # fmt: skip
    assert results[0][0] != results[0][1]
    torch.testing.assert_close(*results[0], rtol=1e-2, atol=0)
    assert results[1][0] == results[1][1]
