"""MFH inside torch.compile, autocast, no_grad and inference_mode, on every backend."""

import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels import Folds, MFHLoss, draw_selection, fused_mfh_loss
from tests.support.mfh import RAGGED, batch, loss_of


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("rounds", [None, 3])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_whole(rounds, reduction, backend):
    x, y, teacher, s, _ = batch(backend)
    folds = Folds.from_ids(*RAGGED.ids).to(backend.device)
    module = MFHLoss(rounds=rounds, reduction=reduction, backend=backend.name)
    options = {"logit_scale": s, "teacher_image_features": teacher[0],
               "teacher_text_features": teacher[1]}  # fmt: skip
    if rounds is not None:
        options["selection"] = draw_selection(folds, x, y, rounds=rounds)
    compiled = torch.compile(module, fullgraph=True)
    results = []
    for call in (module, compiled):
        for leaf in (x, y, s):
            leaf.grad = None
        value = call(x, y, folds, **options)
        value = torch.cat(value) if reduction == "none" else value
        value.sum().backward()
        results.append([value.detach(), x.grad, y.grad, s.grad])
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, eager)


@pytest.mark.usefixtures("compiler")
def test_compiled_with_uniform_folds_and_a_draw(backend):
    x, y = (normalize(torch.randn(n, 8)).to(backend.device) for n in (12, 10))
    compiled = torch.compile(fused_mfh_loss, fullgraph=True)
    options = {"logit_scale": 20.0, "backend": backend.name}
    drawn = compiled(x, y, (6, 5), rounds=50, **options)
    exact = compiled(x, y, (6, 5), rounds=None, **options)
    eager = fused_mfh_loss(x, y, (6, 5), rounds=None, **options)
    torch.testing.assert_close(exact, eager)
    torch.testing.assert_close(drawn, eager, rtol=0.2, atol=0)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("rounds", [None, 4])
def test_compiled_ragged_batches_of_changing_sizes(rounds, backend):
    """No recompilation per batch: the third size of everything is a variant already known."""
    compiled = torch.compile(MFHLoss(rounds=rounds, backend=backend.name), fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        image_ids = torch.randint(0, 6, (11 + 3 * step,), generator=generator)
        text_ids = torch.randint(0, 6, (9 + 2 * step,), generator=generator)
        x, y = (normalize(torch.randn(len(i), 8)).to(backend.device) for i in (image_ids, text_ids))
        folds = Folds.from_ids(image_ids, text_ids).to(backend.device)
        # As a tensor: a number is a constant of the program, and a new one a new program.
        scale = torch.tensor(20.0 + step, device=backend.device)
        loss = compiled(x, y, folds, logit_scale=scale)
        eager = fused_mfh_loss(x, y, folds, logit_scale=scale, rounds=None, backend=backend.name)
        tolerance = {"rtol": 1e-5, "atol": 0} if rounds is None else {"rtol": 0.3, "atol": 0}
        torch.testing.assert_close(loss, eager, **tolerance)


@pytest.mark.usefixtures("compiler")
def test_a_wrong_selection_inside_a_compiled_region_gives_nan(backend):
    x, y, _, s, _ = batch(backend)
    folds = Folds.from_ids(*RAGGED.ids).to(backend.device)
    to_text, to_image = draw_selection(folds, x, y, rounds=2)
    to_text[0, 0] = -1
    compiled = torch.compile(MFHLoss(backend=backend.name), fullgraph=True)
    assert compiled(x, y, folds, logit_scale=s, selection=(to_text, to_image)).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_the_features_and_nothing_else(dtype, backend):
    x, y, teacher, s, _ = batch(backend)
    with torch.autocast(backend.device.type, dtype):
        loss = loss_of(backend, x, y, teacher, s)
    loss.backward()
    assert loss.dtype == x.grad.dtype == torch.float32
    low = [f.detach().to(dtype).requires_grad_() for f in (x, y)]
    outside = loss_of(backend, *low, [t.to(dtype) for t in teacher], s.detach())
    outside.backward()
    assert torch.equal(loss, outside)
    assert torch.equal(x.grad, low[0].grad.float())


def test_autocast_joins_towers_of_different_dtypes(backend):
    x, y, teacher, s, _ = batch(backend)
    with torch.autocast(backend.device.type, torch.bfloat16):
        mixed = loss_of(backend, x.bfloat16(), y, teacher, s)
        same = loss_of(backend, x, y, teacher, s)
    assert torch.equal(mixed, same)


def test_no_grad_and_inference_mode(backend):
    x, y, teacher, s, _ = batch(backend)
    expected = loss_of(backend, x, y, teacher, s)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            loss = loss_of(backend, x, y, teacher, s)
        assert not loss.requires_grad
        assert torch.equal(loss, expected)


def test_inference_first_and_training_after_with_uniform_folds(backend):
    """The tables that inference left behind serve a training step."""
    x, y = (normalize(torch.randn(n, 8)).to(backend.device) for n in (21, 14))
    options = {"logit_scale": 20.0, "rounds": None, "backend": backend.name}
    with torch.inference_mode():
        expected = fused_mfh_loss(x, y, (3, 2), **options)
    with torch._subclasses.FakeTensorMode() as mode:
        fused_mfh_loss(mode.from_tensor(x), mode.from_tensor(y), (3, 2), **options)
    loss = fused_mfh_loss(x.requires_grad_(), y, (3, 2), **options)
    loss.backward()
    assert torch.equal(loss, expected)
