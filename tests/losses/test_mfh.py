"""fused_mfh_loss against the dense float64 reference: values and every gradient."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from mxm_kernels import Folds, draw_selection, fused_mfh_loss
from tests.support.cases import (
    NAMED_CASES,
    Case,
    cases,
    run_dense,
    run_fused,
    selection_of,
    upstream_of,
)
from tests.support.compare import assert_as_good
from tests.support.magnitude import magnitudes

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check(case: Case, dtype: torch.dtype, backend) -> None:
    features = case.as_read(dtype)
    expected = run_dense(case, torch.float64, features)
    naive = run_dense(case, dtype, features)
    actual = run_fused(case, dtype, backend)
    sizes = magnitudes(case, features, selection_of(case), upstream_of(case))
    largest = float(upstream_of(case).norm()) / case.temperature
    for name, value in actual.named():
        # S is rounded to s units, which exp turns into s units of each term of dS.
        rounding = 4 if name == "loss" else 4 + 1 / case.temperature
        # In one dimension texts differ in their sign alone, and dS, rounded to 16 bits, cancels.
        early = name != "loss" and dtype.itemsize == 2 and case.dimension == 1
        units = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps if early else 0.0
        assert_as_good(
            name,
            value,
            getattr(expected, name),
            getattr(naive, name),
            dtype,
            magnitude=(1 + units / rounding) * sizes[name],
            rounding=rounding,
            largest=largest,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", NAMED_CASES.values(), ids=NAMED_CASES.keys())
def test_named_cases(case, dtype, backend):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} takes no {dtype}")
    check(case, dtype, backend)


@settings(max_examples=60)
@given(data=st.data())
def test_drawn_cases(backend, data):
    case = data.draw(cases(backend.most_rows))
    check(case, data.draw(st.sampled_from(backend.dtypes)), backend)


def test_trained_features(backend):
    """Near convergence positives stand far above negatives and the softmaxes nearly cancel."""
    case = Case(tuple(i % 8 for i in range(32)), tuple(j % 8 for j in range(24)), dimension=32)

    class Trained(Case):
        def features(self, dtype):
            centres = normalize(torch.randn(8, 32, generator=torch.Generator().manual_seed(5)))
            noise = super().features(torch.float64)
            ids = self.ids * 2
            return [
                normalize(centres.double()[i] + 0.3 * n).to(dtype)
                for i, n in zip(ids, noise, strict=True)
            ]

    for dtype in backend.dtypes:
        check(Trained(**vars(case) | {"temperature": 0.03}), dtype, backend)


@pytest.mark.parametrize("scale_shape", [(), (1,)])
def test_shape_of_the_scale(scale_shape, backend):
    x, y = (f.to(backend.device) for f in NAMED_CASES["uniform"].features(torch.float32)[:2])
    scale = torch.full(scale_shape, 14.0, device=backend.device, requires_grad=True)
    loss = fused_mfh_loss(x, y, (6, 5), logit_scale=scale, rounds=None, backend=backend.name)
    loss.backward()
    assert scale.grad.shape == scale_shape
    number = fused_mfh_loss(x, y, (6, 5), logit_scale=14.0, rounds=None, backend=backend.name)
    assert torch.equal(loss.detach(), number)


def test_uniform_folds_equal_their_ids(backend):
    case = NAMED_CASES["uniform"]
    x, y = (f.to(backend.device) for f in case.features(torch.float32)[:2])
    options = {"logit_scale": 20.0, "rounds": None, "backend": backend.name}
    losses = [
        fused_mfh_loss(x, y, folds, **options)
        for folds in (
            (6, 5),
            Folds.uniform(6, 5),
            case.ids,
            [list(case.image_ids), list(case.text_ids)],
            Folds.from_ids(*case.ids).to(backend.device),
        )
    ]
    assert all(torch.equal(loss, losses[0]) for loss in losses)


def test_order_of_the_rows_does_not_matter(backend):
    case = NAMED_CASES["ragged and shuffled"]
    x, y = (f.to(backend.device) for f in case.features(torch.float32)[:2])
    i, j = torch.randperm(len(x)), torch.randperm(len(y))
    options = {"logit_scale": 20.0, "rounds": None, "backend": backend.name}
    image_ids, text_ids = case.ids
    straight = fused_mfh_loss(x, y, (image_ids, text_ids), **options)
    shuffled = fused_mfh_loss(x[i], y[j], (image_ids[i], text_ids[j]), **options)
    torch.testing.assert_close(straight, shuffled, rtol=1e-5, atol=0)


def test_one_pair_per_instance_is_clip(backend):
    x, y = (normalize(torch.randn(19, 8)).to(backend.device) for _ in range(2))
    loss = fused_mfh_loss(x, y, (1, 1), logit_scale=14.3, rounds=None, backend=backend.name)
    logits, target = 14.3 * x @ y.T, torch.arange(19, device=x.device)
    clip = torch.nn.functional.cross_entropy
    torch.testing.assert_close(loss, (clip(logits, target) + clip(logits.T, target)) / 2)


def test_many_rounds_approach_the_expectation(backend):
    case = NAMED_CASES["uniform"]
    x, y = (f.to(backend.device) for f in case.features(torch.float32)[:2])
    options = {"logit_scale": 20.0, "backend": backend.name}
    expected = fused_mfh_loss(x, y, (6, 5), rounds=None, **options)
    generator = torch.Generator().manual_seed(0)
    drawn = fused_mfh_loss(x, y, (6, 5), rounds=20_000, generator=generator, **options)
    torch.testing.assert_close(drawn, expected, rtol=2e-3, atol=0)


def test_selection_is_the_draw_of_the_generator(backend):
    case = NAMED_CASES["rows without positives"]
    x, y = (f.to(backend.device) for f in case.features(torch.float32)[:2])

    def generator():
        return torch.Generator().manual_seed(3)

    options = {"logit_scale": 20.0, "backend": backend.name}
    drawn = fused_mfh_loss(x, y, case.ids, rounds=4, generator=generator(), **options)
    selection = draw_selection(case.ids, x, y, rounds=4, generator=generator())
    given_ = fused_mfh_loss(x, y, case.ids, rounds=99, selection=selection, **options)
    assert torch.equal(drawn, given_)


def test_the_default_backend_follows_the_device(backend):
    case = replace(NAMED_CASES["uniform"], rounds=None)
    x, y = (f.to(backend.device) for f in case.features(torch.float32)[:2])
    default = fused_mfh_loss(x, y, (6, 5), logit_scale=20.0, rounds=None)
    named = fused_mfh_loss(x, y, (6, 5), logit_scale=20.0, rounds=None, backend=backend.name)
    torch.testing.assert_close(default, named, rtol=1e-5, atol=0)


def test_strided_and_expanded_inputs(backend):
    case = NAMED_CASES["uniform"]
    x, y, tx, ty = (f.to(backend.device) for f in case.features(torch.float32))
    wide = torch.stack([x, x], dim=2)[:, :, 0]
    expanded = y[:1].expand(10, -1)
    options = {"logit_scale": 20.0, "rounds": None, "backend": backend.name}
    for a, b, ta, tb in ((wide, y.T.contiguous().T, tx, ty), (x, expanded, wide, expanded)):
        a_, b_ = a.detach().requires_grad_(), b.detach().requires_grad_()
        loss = fused_mfh_loss(
            a_, b_, (6, 5), teacher_image_features=ta, teacher_text_features=tb, **options
        )
        loss.backward()
        c, d = a.contiguous().requires_grad_(), b.contiguous().requires_grad_()
        plain = fused_mfh_loss(
            c, d, (6, 5), teacher_image_features=ta.contiguous(),
            teacher_text_features=tb.contiguous(), **options,
        )  # fmt: skip
        plain.backward()
        torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
        torch.testing.assert_close(a_.grad, c.grad)
        torch.testing.assert_close(b_.grad, d.grad)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("teacher_dtype", [None, torch.float8_e4m3fn], ids=str)
def test_features_that_are_not_finite_show(bad, place, reduction, teacher_dtype, backend):
    features = [f.to(backend.device) for f in NAMED_CASES["uniform"].features(torch.float32)]
    features[place][2, 3] = bad
    x, y, tx, ty = features
    loss = fused_mfh_loss(
        x, y, (6, 5), logit_scale=20.0, teacher_image_features=tx, teacher_text_features=ty,
        reduction=reduction, backend=backend.name, teacher_dtype=teacher_dtype,
    )  # fmt: skip
    loss = torch.cat(loss) if reduction == "none" else loss
    assert not torch.isfinite(loss).all()


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("row", [0, 1])  # with and without a positive
def test_a_feature_that_no_sum_would_notice_shows(row, side, bad, backend):
    """Its similarities are all -inf, or +inf at its positive."""
    x, y = (torch.tensor([[1.0, 0.0], [1.0, 0.0]], device=backend.device) for _ in range(2))
    (x if side == "image" else y)[row, 0] = bad
    loss = fused_mfh_loss(
        x, y, ([0, 5], [0, 1]), logit_scale=20.0, rounds=None, backend=backend.name
    )
    assert loss.isnan()


def test_a_teacher_receives_no_gradient(backend):
    x, y, tx, ty = (
        f.to(backend.device).requires_grad_()
        for f in NAMED_CASES["uniform"].features(torch.float32)
    )
    scale = torch.tensor(20.0, device=backend.device, requires_grad=True)
    loss = fused_mfh_loss(
        x, y, (6, 5), logit_scale=20.0, teacher_image_features=tx, teacher_text_features=ty,
        teacher_logit_scale=scale, backend=backend.name,
    )  # fmt: skip
    loss.backward()
    assert tx.grad is None
    assert ty.grad is None
    assert scale.grad is None
    assert x.grad is not None


@pytest.mark.parametrize("upstream", [1e-4, 65536.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_small_and_large_upstream_gradients(upstream, dtype, backend):
    """A loss scaled by GradScaler, or one of many terms: dS must fit the dtype of the workspace."""
    case = NAMED_CASES["several tiles and tails"]
    x, y, tx, ty = (f.to(backend.device) for f in case.features(dtype))

    def gradient(factor):
        a = x.detach().requires_grad_()
        loss = fused_mfh_loss(
            a, y, case.ids, logit_scale=20.0, rounds=None, teacher_image_features=tx,
            teacher_text_features=ty, backend=backend.name,
        )  # fmt: skip
        loss.backward(torch.tensor(factor, device=backend.device))
        return a.grad.float()

    expected, actual = gradient(1.0) * upstream, gradient(upstream)
    # The result is stored in 16 bits too: float16 keeps half of its smallest number's precision.
    kind = torch.finfo(dtype)
    stored = kind.smallest_normal * kind.eps / 2 * max(1.0, upstream) * expected.numel() ** 0.5
    assert float((actual - expected).norm()) <= 2 * kind.eps * float(expected.norm()) + stored


@pytest.mark.parametrize("with_teacher", [False, True])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e5, 1e9, 1e17])
def test_gradients_of_logits_of_any_size(size, with_teacher, backend):
    """Rounded, a logit may pass its own normaliser: by 64 if it is 1e9."""
    g = torch.Generator().manual_seed(0)
    made = [normalize(torch.randn(n, 16, generator=g, dtype=torch.float64)) for n in (24, 20) * 2]
    results = []
    for dtype, device, name in (
        (torch.float64, torch.device("cpu"), "blocked"),
        (torch.float32, backend.device, backend.name),
    ):
        x, y, *teacher = (f.to(device, dtype) for f in made)
        x, y = ((f * (size / 10) ** 0.5).requires_grad_() for f in (x, y))
        options = {"rounds": None, "backend": name, "logit_scale": 10.0}
        if with_teacher:
            options["teacher_image_features"], options["teacher_text_features"] = teacher
        loss = fused_mfh_loss(x, y, (6, 5), **options)
        loss.backward()
        results.append([v.detach().cpu().double() for v in (loss, x.grad, y.grad)])
    # What an exponent loses to a logit of this size. Where the logits of a row are all but equal or
    # far apart, their rounding cancels; not on triton, which takes them to base 2.
    lost = size if backend.name == "triton" else min(size, 1e4)
    allowed = min(1e-5 + 0.25 * torch.finfo(torch.float32).eps * lost, 1.0)
    for expected, actual in zip(*results, strict=True):
        assert float((actual - expected).norm()) <= allowed * float(expected.norm())
