"""The intra-modal loss against masks; it is SupCon with itself left out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from mxm_kernels import fused_intra_modal_loss
from reference import family
from tests.support.compare import assert_as_good


def _dense(x, ids, scale, weights, masked, rounds_weights=None):
    same = ids[:, None] == ids[None, :]
    others = same & ~torch.eye(len(ids), dtype=torch.bool)
    rows = family.info_nce(scale * x @ x.T, others, ~same, family.alike(others), masked=masked)
    return rows, family.mean(rows, others.any(1), weights)


@settings(max_examples=40)
@given(
    ids=st.lists(st.integers(0, 5), min_size=2, max_size=20),
    masked=st.booleans(),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_value_and_gradients(backend, ids, masked, weighted, seed):
    ids[-1] = ids[0]
    g = torch.Generator().manual_seed(seed)
    made = normalize(torch.randn(len(ids), 6, generator=g, dtype=torch.float64))
    weights = torch.rand(len(ids), generator=g, dtype=torch.float64) + 0.1 if weighted else None
    names = torch.tensor(ids)
    results = []
    for dtype, fused in ((torch.float32, True), (torch.float64, False), (torch.float32, False)):
        x = made.to(dtype, copy=True).requires_grad_()
        s = torch.tensor(9.0, dtype=dtype, requires_grad=True)
        w = None if weights is None else weights.to(dtype)
        if fused:
            loss = fused_intra_modal_loss(
                x.to(backend.device), names, logit_scale=s.to(backend.device),
                mask_positives=masked, backend=backend.name,
                row_weights=None if w is None else w.to(backend.device),
            )  # fmt: skip
        else:
            loss = _dense(x, names, s, w, masked)[1]
        loss.backward()
        results.append([loss.detach().cpu(), x.grad, s.grad])
    for name, *values in zip(("loss", "x", "s"), *results, strict=True):
        assert_as_good(name, *values, torch.float32, magnitude=36.0)


def test_rows_and_uniform_folds(backend):
    x = normalize(torch.randn(12, 5)).to(backend.device)
    options = {"logit_scale": 7.0, "reduction": "none", "backend": backend.name}
    rows = fused_intra_modal_loss(x, 3, **options)
    names = torch.arange(4).repeat_interleave(3)
    expected, _ = _dense(x.cpu(), names, 7.0, None, True)
    torch.testing.assert_close(rows.cpu(), expected.float())
    assert torch.equal(rows, fused_intra_modal_loss(x, names, **options))


def test_many_rounds_approach_the_expectation():
    x = normalize(torch.randn(12, 5))
    expected = fused_intra_modal_loss(x, 4, logit_scale=7.0)
    drawn = fused_intra_modal_loss(
        x, 4, logit_scale=7.0, rounds=20_000, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(drawn, expected, rtol=5e-3, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"folds": 1}, ValueError, "folds: expected an instance with at least two rows"),
        ({"folds": 5}, ValueError, "folds: uniform folds need 5"),
        ({"folds": True}, TypeError, "folds must be an integer or the ids"),
        ({"folds": [1, 1]}, ValueError, "folds: expected ids for 6 rows"),
        ({"features": torch.ones(6)}, ValueError, "features must have shape"),
        ({"mask_positives": 1}, TypeError, "mask_positives must be True or False"),
        ({"rounds": 0}, ValueError, "rounds must be at least 1"),
        ({"reduction": "sum"}, ValueError, "reduction must be"),
        ({"row_weights": torch.ones(5)}, ValueError, r"row_weights must have shape \(6,\)"),
        ({"row_weights": -torch.ones(6)}, ValueError, "row_weights must not be negative"),
        ({"logit_scale": -1.0}, ValueError, "logit_scale must be positive"),
    ],
)
def test_bad_arguments(change, error, message):
    good = {"features": torch.ones(6, 3), "folds": 2, "logit_scale": 1.0}
    with pytest.raises(error, match=message):
        fused_intra_modal_loss(**good | change)
