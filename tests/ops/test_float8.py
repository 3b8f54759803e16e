"""The teacher in float8: what is rounded, its factors at both ends of the range, the opcheck."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from mxm_kernels import Queue, fused_mfh_loss, fused_soft_loss
from mxm_kernels.backends.float8 import float8_teacher as defined
from mxm_kernels.ops.float8 import float8_teacher, largest_of
from tests.support.cases import in_float8

FLOAT8 = torch.float8_e4m3fn
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def rounded(backend, a, b, t):
    a, b, t = (v.to(backend.device) for v in (a, b, t))
    features, t = float8_teacher((a, b), t, largest_of(a, b, t.dtype), backend.name)
    return [f.cpu() for f in features], t.cpu()


def of(*numbers, dtype=torch.float32):
    return torch.tensor([numbers], dtype=dtype)


def takes(backend, dtype):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} takes no {dtype}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype, backend):
    takes(backend, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    a, b = (torch.randn(n, 7, device=backend.device, dtype=dtype) for n in (5, 4))
    t = torch.tensor(20.0, device=backend.device, dtype=wide)
    arguments = a, b, t, largest_of(a, b, wide), backend.name
    torch.library.opcheck(torch.ops.mxm_kernels.float8_teacher.default, arguments)


def hold(backend, a, b, t, largest):
    """Hold the backend to the definition, bit for bit."""
    given = [v.to(backend.device) for v in (a, b, t, largest)]
    found = float8_teacher((given[0], given[1]), given[2], given[3], backend.name)
    c, d, scale = defined(a, b, t, largest)
    torch.testing.assert_close(found[1].cpu(), scale, rtol=0, atol=0, equal_nan=True)
    for of_float8, expected in zip(found[0], (c, d), strict=True):
        assert of_float8.dtype == FLOAT8 and of_float8.is_contiguous()
        assert torch.equal(of_float8.cpu().view(torch.uint8), expected.view(torch.uint8))


def any_bits(dtype, count):
    """Numbers of random bits: of every magnitude, subnormal, infinite or NaN."""
    whole = torch.int32 if dtype == torch.float32 else torch.int16
    least, most = torch.iinfo(whole).min, torch.iinfo(whole).max
    return torch.randint(least, most + 1, (count,)).to(whole).view(dtype)


def edges(power, dtype):
    """All numbers of float8 over 2^power, those halfway between them, and what lies beside."""
    positive = torch.arange(0x7F, dtype=torch.uint8).view(FLOAT8).double()
    ends = torch.cat([positive, (positive[1:] + positive[:-1]) / 2])
    ends = (ends * 2.0**-power).float()
    more = [ends.nextafter(torch.tensor(float(towards))) for towards in (0, torch.inf)]
    if dtype != torch.float32:
        ends = ends.to(dtype)
        more = [(ends.view(torch.int16) + step).view(dtype) for step in (-1, 1)]
    return torch.cat([f * sign for f in (ends, *more) for sign in (1, -1)])


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("exponent", [-149, -133, -127, -118, -14, 0, 13, 70, 127])
def test_every_magnitude_is_rounded_as_defined(exponent, dtype, backend):
    """One matrix may be as large as the other is small; their largest entries next to 2^e 1.75."""
    for mantissas in ((1.0, 1.7500001), (1.999, 1.75)):
        exponents = exponent, max(-exponent, -149)
        exponents = [min(e, 127) for e in exponents]
        largest = torch.tensor([m * 2.0**e for m, e in zip(mantissas, exponents, strict=True)])
        matrices = []
        for e, most in zip(exponents, largest, strict=True):
            power = min(8 - e, 126)
            entries = torch.cat([edges(power, dtype), any_bits(dtype, 1000)])
            within = entries.float().abs() <= most
            matrices.append(entries.where(within, 0)[: len(entries) // 9 * 9].view(-1, 9))
        hold(backend, *matrices, torch.tensor(3.0), largest)


@pytest.mark.parametrize(
    "t", [1.0, 1e-45, 1.1754942e-38, 3.4e38, 0.0, -1.0, *map(float, ("inf", "nan"))]
)
def test_every_scale_is_folded_as_defined(t, backend):
    one, t = torch.ones(1, 1), torch.tensor(t)
    magnitudes = [0.0, 1e-45, 2.0**-118, 0.9, 3e38]
    for pair in itertools.product(magnitudes, magnitudes):
        largest = torch.tensor(pair)
        hold(backend, one * largest[0], one * largest[1], t, largest)


def test_views_and_tails_are_rounded_as_defined(backend):
    """Rows and columns apart, transposed, one row for all, one column; more than a tile."""
    wide, tall = torch.randn(40, 300), torch.randn(131, 33)
    pairs = [
        (wide[::2, 1:132], tall.T),
        (wide[:1, :131].expand(17, 131), torch.randn(131).expand(3, 131)),
        (tall[:, :1], wide[3:4, 7:8]),
        (wide[:, ::300], wide[::39, :1]),
        (wide.flip(0)[:, :128], wide.bfloat16()[:16, 100:228].float()),
    ]
    for a, b in pairs:
        hold(backend, a, b, torch.tensor(2.0), largest_of(a, b, torch.float32))


def test_rows_and_columns_that_lie_far_apart(backend):
    """Over 2^31 numbers, which the system gives without memory behind those that are not written.

    The strides have 32 bits, what they are multiplied to has more.
    """
    if backend.device.type != "cpu":
        pytest.skip("a GPU has the memory that it gives")
    far = 2**30
    numbers = torch.from_numpy(np.zeros(2 * far + 40, dtype=np.float16))
    for start in (0, far, 2 * far):
        numbers[start : start + 40] = torch.randn(40)
    for f in (numbers.as_strided((3, 40), (far, 1)), numbers.as_strided((40, 3), (1, far))):
        hold(backend, f, f[:1], torch.tensor(2.0), largest_of(f, f[:1], torch.float32))


@pytest.mark.parametrize("rows", [(0, 5), (3, 0), (0, 0)], ids=str)
def test_a_matrix_without_a_row(rows, backend):
    """As a rank's shard may be, whose largest entries are those of other rows."""
    a, b = (torch.randn(n, 20) for n in rows)
    hold(backend, a, b, torch.tensor(2.0), torch.tensor([3.0, 5.0]))
    hold(backend, a, b, torch.tensor(2.0), largest_of(a, b, torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_entry_fills_the_range_and_the_scale_undoes_it(dtype, backend):
    takes(backend, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    a, b = (normalize(torch.randn(n, 24, dtype=wide)).to(dtype) for n in (9, 6))
    b = b * 40
    (c, d), t = rounded(backend, a, b, torch.tensor(33.0, dtype=wide))
    for of_float8 in (c, d):
        assert of_float8.dtype == FLOAT8
        assert 224 <= of_float8.float().abs().max() <= 448
    T = 33 * in_float8(a).double() @ in_float8(b).double().T
    torch.testing.assert_close(t.double() * (c.double() @ d.double().T), T, rtol=1e-12, atol=0)


@given(exponents=st.tuples(st.integers(-126, 127), st.integers(-126, 127)))
def test_any_finite_features_stay_finite(exponents, backend):
    """One may be as large as the other is small, and both may be either."""
    a, b = (of(1.75 * 2.0**e, -(2.0 ** (e - 1)), 0.0) for e in exponents)
    (c, d), t = rounded(backend, a, b, torch.tensor(3.0))
    assert c.float().isfinite().all() and d.float().isfinite().all() and t.isfinite() and t > 0
    if abs(sum(exponents)) < 90 and min(exponents) > -110:
        exact = 3 * a.double() @ b.double().T
        torch.testing.assert_close(t.double() * (c.double() @ d.double().T), exact)


@pytest.mark.parametrize("largest", [448.0, 449.0, 479.9, 480.0, 511.9, 512.0, 0.21875])
def test_what_lies_next_to_the_end_of_the_range_is_not_lost(largest, backend):
    (c, _), t = rounded(backend, of(largest, 1.0), of(1.0, 1.0), torch.tensor(1.0))
    assert c.float().isfinite().all()
    assert math.isclose(float(t * c[0, 0].float() * 256), largest, rel_tol=2**-4)


def test_zeros_are_zeros(backend):
    (c, d), t = rounded(backend, of(0.0, 0.0), of(1.0, 2.0), torch.tensor(5.0))
    assert not c.float().any() and t > 0 and d.float().any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_features_that_are_not_finite_show_in_the_scale(bad, backend):
    for pair in ((of(bad, 1.0), of(1.0, 1.0)), (of(1.0, 1.0), of(1.0, bad))):
        assert rounded(backend, *pair, torch.tensor(5.0))[1].isnan()


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
