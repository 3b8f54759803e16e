"""The operator from features to the loss is the statistics and the rows, one after the other."""

from functools import partial

import pytest
import torch
from mxm_kernels.operators.mixed import mixed_loss
from torch.nn.functional import normalize

from mxm_kernels import (
    Folds,
    fused_debiased_loss,
    fused_decoupled_loss,
    fused_info_nce_loss,
    fused_mfh_loss,
    fused_soft_loss,
    fused_supcon_loss,
)
from mxm_kernels.backends import native
from mxm_kernels.backends.interface import Form, Shares, Sides
from mxm_kernels.backends.native import plane
from mxm_kernels.core.pair_weights import expected_weights
from mxm_kernels.ops.library import make_problem
from tests.support.cases import NAMED_CASES

NAMES = "ragged and shuffled", "rows without positives", "several tiles and tails"
SHARES = Shares(0.3, 0.2, 0.45, 0.05)


def _arguments(backend, case, dtype=torch.float32, with_teacher=True, weighted=False):
    x, y, tx, ty = (f.to(backend.device) for f in case.features(dtype))
    tables = Folds.from_ids(*case.ids).to(backend.device).tables(len(x), len(y), x.device)
    s = torch.tensor(20.0, device=backend.device).to(
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    leaves = [v.requires_grad_() for v in (x, y, s)]
    teacher, t = ((tx, ty), s.detach()) if with_teacher else (None, None)
    problem = make_problem(x, y, teacher, s, t, tables)
    lengths = (len(x), len(x), len(y), len(y)) if weighted else (0, 0, 0, 0)
    sides = Sides(
        *expected_weights(tables, s.dtype),
        tables.text_offsets,
        tables.text_slots,
        tables.slot_places,
        *(torch.rand(n, dtype=s.dtype, device=s.device) for n in lengths),
    )
    counts = (
        tables.images_with_positive,
        tables.images,
        tables.texts_with_positive,
        tables.texts,
    )
    shares = SHARES if with_teacher else SHARES._replace(soft_rows=0.0, soft_cols=0.0)
    return leaves, (problem, sides, Form("masked"), shares, counts, backend.name)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("with_teacher", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["masked", "debiased"])
def test_opcheck(form, with_teacher, weighted, dtype, backend):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} takes no {dtype}")
    _, arguments = _arguments(backend, NAMED_CASES[NAMES[0]], dtype, with_teacher, weighted)
    problem, sides, _, shares, counts, name = arguments
    rest = form, 0.1, shares, counts, name
    torch.library.opcheck(torch.ops.mxm_kernels.mixed_loss.default, (*problem, *sides, *rest))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_teacher", [True, False])
def test_it_is_the_operators_one_after_the_other(with_teacher, name, backend):
    case = NAMED_CASES[name]
    x, y, tx, ty = (f.to(backend.device) for f in case.features(torch.float32))
    options = {"teacher_image_features": tx, "teacher_text_features": ty} if with_teacher else {}
    results = []
    for weights in ({}, _learned_ones(x, y)):
        leaves = [v.clone().requires_grad_() for v in (x, y, torch.tensor(20.0, device=x.device))]
        loss = fused_mfh_loss(
            *leaves[:2], case.ids, logit_scale=leaves[2], rounds=None, image_to_text_weight=0.3,
            backend=backend.name, **options, **{k: w.to(x.device) for k, w in weights.items()},
        )  # fmt: skip
        grads = torch.autograd.grad(loss * 7, leaves)
        results.append((loss, *grads))
    for plain, apart in zip(*results, strict=True):
        torch.testing.assert_close(plain, apart, rtol=1e-5, atol=1e-6 * apart.abs().max().item())


def _learned_ones(x, y) -> dict[str, torch.Tensor]:
    """Weights that change nothing, and take the way of the statistics and the formulas."""
    ones = (torch.ones(len(side), requires_grad=True) for side in (x, y))
    return dict(zip(("image_weights", "text_weights"), ones, strict=True))


LOSSES = {
    "unmasked": partial(fused_info_nce_loss, mask_false_negatives=False),
    "masked": fused_info_nce_loss,
    "decoupled": fused_decoupled_loss,
    "out": fused_supcon_loss,
    "in": partial(fused_supcon_loss, positives="in"),
    "debiased": partial(fused_debiased_loss, positive_prior=0.02),
    "debiased, on its floor": partial(fused_debiased_loss, positive_prior=0.9),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("soft", [0.0, 0.4])
@pytest.mark.parametrize("name", NAMES)
def test_every_form_is_the_loss_algebra(name, soft, loss, backend):
    case = NAMED_CASES[name]
    x, y, tx, ty = (f.to(backend.device) for f in case.features(torch.float32))
    options = {"teacher_image_features": tx, "teacher_text_features": ty, "soft_weight": soft}
    results = []
    for weights in ({}, _learned_ones(x, y)):
        leaves = [v.clone().requires_grad_() for v in (x, y, torch.tensor(20.0, device=x.device))]
        value = LOSSES[loss](
            *leaves[:2], case.ids, logit_scale=leaves[2], image_to_text_weight=0.3,
            backend=backend.name, **(options if soft else {}),
            **{k: w.to(x.device) for k, w in weights.items()},
        )  # fmt: skip
        results.append((value, *torch.autograd.grad(value * 7, leaves)))
    for plain, apart in zip(*results, strict=True):
        torch.testing.assert_close(plain, apart, rtol=2e-5, atol=2e-6 * apart.abs().max().item())


ROW_OPTIONS = {
    "weights of both sides": ("image_weights", "text_weights"),
    "weights of the texts": ("text_weights",),
    "soft shares": ("soft_weight",),
    "both": ("image_weights", "soft_weight"),
}


@pytest.mark.parametrize("options", ROW_OPTIONS.values(), ids=ROW_OPTIONS)
@pytest.mark.parametrize("loss", [*LOSSES, "soft"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_and_shares_of_the_rows_are_the_loss_algebra(name, loss, options, backend):
    """Those that are learned take the way of the formulas."""
    case = NAMED_CASES[name]
    x, y, tx, ty = (f.to(backend.device) for f in case.features(torch.float32))
    g = torch.Generator().manual_seed(2)
    a, b, c, d = (torch.rand(n, generator=g).to(x.device) for n in (len(x), len(y)) * 2)
    a[::3] = 0  # rows that count for nothing
    made = {"image_weights": a, "text_weights": b, "soft_weight": (c, d)}
    if loss == "soft" and "soft_weight" in options:
        pytest.skip("the soft loss alone has no share")
    function = fused_soft_loss if loss == "soft" else LOSSES[loss]
    results = []
    for learned in (False, True):
        given = {}
        for option in options:
            vectors = made[option] if isinstance(made[option], tuple) else (made[option],)
            vectors = tuple(v.clone().requires_grad_(learned) for v in vectors)
            given[option] = vectors if option == "soft_weight" else vectors[0]
        if loss == "soft" or "soft_weight" in options:
            given |= {"teacher_image_features": tx, "teacher_text_features": ty}
        leaves = [v.clone().requires_grad_() for v in (x, y, torch.tensor(20.0, device=x.device))]
        value = function(
            *leaves[:2], case.ids, logit_scale=leaves[2], image_to_text_weight=0.3,
            backend=backend.name, **given,
        )  # fmt: skip
        results.append((value, *torch.autograd.grad(value * 7, leaves)))
    for plain, apart in zip(*results, strict=True):
        torch.testing.assert_close(plain, apart, rtol=2e-5, atol=2e-6 * apart.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_backward_can_run_twice_and_scales_with_its_gradient(dtype, backend):
    leaves, arguments = _arguments(backend, NAMED_CASES[NAMES[0]], dtype)
    loss = mixed_loss(*arguments)
    once = torch.autograd.grad(loss, leaves, retain_graph=True)
    again = torch.autograd.grad(loss, leaves, retain_graph=True)
    scaled = torch.autograd.grad(loss, leaves, torch.full_like(loss, 2.0**12))
    for a, b, c in zip(once, again, scaled, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, a * 2.0**12, rtol=1e-6, atol=0)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), (0, 1)], ids=str)
def test_only_the_gradients_that_are_wanted(needed, backend):
    leaves, arguments = _arguments(backend, NAMED_CASES[NAMES[0]])
    every = torch.autograd.grad(mixed_loss(*arguments), leaves)
    for k, leaf in enumerate(leaves):
        leaf.requires_grad_(k in needed)
    some = torch.autograd.grad(mixed_loss(*arguments), [leaves[k] for k in needed])
    for k, got in zip(needed, some, strict=True):
        torch.testing.assert_close(got, every[k])


def test_second_derivatives_are_refused(backend):
    leaves, arguments = _arguments(backend, NAMED_CASES[NAMES[0]])
    (grad,) = torch.autograd.grad(mixed_loss(*arguments), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("row", [0, 1])  # with and without a positive
def test_a_feature_that_is_not_finite_shows(row, side, bad, backend):
    """Its similarities are all -inf, or +inf at its positive: no sum would notice."""
    x, y = (torch.tensor([[1.0, 0.0], [1.0, 0.0]], device=backend.device) for _ in range(2))
    (x if side == "image" else y)[row, 0] = bad
    loss = fused_mfh_loss(
        x, y, ([0, 5], [0, 1]), logit_scale=20.0, rounds=None, backend=backend.name
    )
    assert loss.isnan()


@pytest.mark.skipif(native.cpp is None, reason="built without a compiler")
@pytest.mark.parametrize("with_teacher", [True, False])
def test_what_native_keeps_changes_nothing_but_the_products(with_teacher, monkeypatch):
    x, y, tx, ty = (normalize(torch.randn(n, 24)) for n in (203, 157) * 2)
    options = {"teacher_image_features": tx, "teacher_text_features": ty} if with_teacher else {}
    results, saved = [], []
    for bound in (plane.KEPT, 0):
        monkeypatch.setattr(plane, "KEPT", bound)
        leaves = [v.clone().requires_grad_() for v in (x, y)]
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            loss = fused_mfh_loss(
                *leaves, (torch.arange(203) // 3, torch.arange(157) // 2),
                logit_scale=20.0, rounds=None, backend="native", **options,
            )  # fmt: skip
        results.append(torch.autograd.grad(loss, leaves))
        saved.append(max(sizes))
    for kept, computed in zip(*results, strict=True):
        assert torch.equal(kept, computed)
    assert saved[0] == (1 + with_teacher) * 203 * plane.stride_of(157)
    assert saved[1] == 203 * 24
