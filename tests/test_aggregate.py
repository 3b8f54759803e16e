"""fold_mean against a loop, on ragged folds, in values and gradients."""

import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels import fold_mean, fused_info_nce_loss, fused_mfh_loss
from reference.mfh import mfh_loss

IDS = [4, 2, 4, 9, 2, 4]


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_ragged(dtype, normalized):
    x = torch.randn(6, 5).to(dtype).requires_grad_()
    means, names = fold_mean(x, IDS, normalized=normalized)
    assert names.tolist() == [2, 4, 9]
    assert means.dtype == dtype
    ids = torch.tensor(IDS)
    wide = x.detach().double().requires_grad_()
    expected = torch.stack([wide[ids == n].mean(0) for n in (2, 4, 9)])
    expected = normalize(expected, dim=1) if normalized else expected
    upstream = torch.randn(3, 5)
    means.backward(upstream.to(dtype))
    expected.backward(upstream.to(dtype).double())
    tolerance = {"rtol": torch.finfo(dtype).eps * 4, "atol": torch.finfo(dtype).eps * 4}
    torch.testing.assert_close(means.double(), expected, **tolerance)
    torch.testing.assert_close(x.grad.double(), wide.grad, **tolerance)


def test_consecutive_rows_equal_their_ids():
    x = torch.randn(8, 3)
    means, names = fold_mean(x, 4)
    scattered, same = fold_mean(x, torch.arange(2).repeat_interleave(4))
    torch.testing.assert_close(means, scattered)
    assert torch.equal(names, same)


def test_gradcheck():
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: fold_mean(f, IDS)[0], x)


def test_text_to_shape():
    """Aggregated views against texts, both under the ids of their instances."""
    views, texts = normalize(torch.randn(6, 5)), normalize(torch.randn(4, 5))
    shapes, ids = fold_mean(views, IDS)
    loss = fused_info_nce_loss(shapes, texts, (ids, [2, 4, 9, 9]), logit_scale=5.0)
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (4, ValueError, "a number of rows that divides the 6 rows"),
        (0, ValueError, "a number of rows that divides"),
        (True, TypeError, "ids must be a number of rows or the ids of the rows, got bool"),
        ([1, 2], ValueError, "an id for each of the 6 rows of features, got 2"),
        ([0.5] * 6, TypeError, "ids must hold integers"),
    ],
)
def test_bad_ids(ids, error, message):
    with pytest.raises(error, match=message):
        fold_mean(torch.ones(6, 2), ids)


@pytest.mark.parametrize("sides", ["images", "texts", "both"])
def test_losses_of_aggregated_sides(sides, backend):
    """Text to aggregated images, aggregated texts to image, both: against matrices and means."""
    image_ids, text_ids = torch.tensor([4, 2, 4, 9, 2]), torch.tensor([9, 2, 4, 2])

    def run(x, y, mean, loss):
        ids, names = image_ids, text_ids
        if sides in ("images", "both"):
            x, ids = mean(x, ids)
        if sides in ("texts", "both"):
            y, names = mean(y, names)
        return loss(x, y, ids, names)

    def dense_mean(features, ids):
        names = ids.unique()
        rows = [features[ids == name].mean(0) for name in names]
        return normalize(torch.stack(rows), dim=1), names

    def fused(x, y, ids, names):
        on = (f.to(backend.device) for f in (x, y))
        options = {"logit_scale": 5.0, "rounds": None, "backend": backend.name}
        return fused_mfh_loss(*on, (ids, names), **options).cpu()

    def dense(x, y, ids, names):
        return mfh_loss(x, y, ids, names, scale=torch.tensor(5.0).double())

    made = [normalize(torch.randn(n, 6, dtype=torch.float64), dim=1) for n in (5, 4)]
    ours = [f.float().requires_grad_() for f in made]
    theirs = [f.requires_grad_() for f in made]
    value = run(*ours, fold_mean, fused)
    expected = run(*theirs, dense_mean, dense)
    value.backward()
    expected.backward()
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(value.double(), expected, **close)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.double(), other.grad, **close)
