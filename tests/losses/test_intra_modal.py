"""The intra-modal loss against masks; it is SupCon with itself left out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from mxm_kernels import fused_intra_modal_loss
from mxm_kernels.losses import intra_modal_soft
from reference import family
from tests.support.compare import assert_as_good

SOFT = {"soft_weight": 1.0, "teacher_features": torch.ones(6, 2)}


@pytest.fixture(params=["matrices", "operator"], scope="module")
def way(request):
    """Of the soft part: with its matrices, as they are small here, and as of a large batch."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "operator":
            patch.setattr(intra_modal_soft, "SMALL", 0)
        yield request.param


def _dense(x, ids, scale, weights, masked, teacher=None, t=None, share=0.0):
    """Losses of the rows, and their mean."""
    same = ids[:, None] == ids[None, :]
    itself = torch.eye(len(ids), dtype=torch.bool)
    others = same & ~itself
    rows = family.info_nce(scale * x @ x.T, others, ~same, family.alike(others), masked=masked)
    hard = family.mean(rows, others.any(1), weights) if others.any() else 0
    if teacher is None:
        return rows, hard
    t = scale.detach() if t is None else t
    soft = family.soft(scale * x @ x.T, t * teacher @ teacher.T, ~itself)
    everyone = torch.ones(len(ids), dtype=torch.bool)
    mean = (1 - share) * hard + share * family.mean(soft, everyone, weights)
    return (1 - share) * rows + share * soft, mean


@settings(max_examples=60)
@given(
    ids=st.lists(st.integers(0, 5), min_size=2, max_size=20),
    masked=st.booleans(),
    weighted=st.booleans(),
    share=st.sampled_from([0.0, 0.0, 0.3, 1.0]),
    t=st.sampled_from([None, 1.0, 60.0]),
    seed=st.integers(0, 99),
)
def test_value_and_gradients(backend, way, ids, masked, weighted, share, t, seed):
    if share < 1:
        ids[-1] = ids[0]
    g = torch.Generator().manual_seed(seed)
    made = normalize(torch.randn(len(ids), 6, generator=g, dtype=torch.float64))
    taught = normalize(torch.randn(len(ids), 4, generator=g, dtype=torch.float64))
    weights = torch.rand(len(ids), generator=g, dtype=torch.float64) + 0.1 if weighted else None
    names = torch.tensor(ids)
    results = []
    for dtype, fused in ((torch.float32, True), (torch.float64, False), (torch.float32, False)):
        x = made.to(dtype, copy=True).requires_grad_()
        s = torch.tensor(9.0, dtype=dtype, requires_grad=True)
        a = taught.to(dtype) if share else None
        w = None if weights is None else weights.to(dtype)
        if fused:
            teacher = {} if a is None else {"teacher_features": a.to(backend.device)}
            if share and t is not None:
                teacher["teacher_logit_scale"] = t
            loss = fused_intra_modal_loss(
                x.to(backend.device), names, logit_scale=s.to(backend.device),
                mask_positives=masked, backend=backend.name, soft_weight=share, **teacher,
                row_weights=None if w is None else w.to(backend.device),
            )  # fmt: skip
        else:
            loss = _dense(x, names, s, w, masked, a, t, share)[1]
        loss.backward()
        results.append([loss.detach().cpu(), x.grad, s.grad])
    # Shares are as exact as their exponents, which are rounded to the size of logits: 9, or t.
    size = 4 * max(9.0, t or 0.0)
    for name, *values in zip(("loss", "x", "s"), *results, strict=True):
        assert_as_good(name, *values, torch.float32, magnitude=size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_teacher_that_sees_little_but_the_row_itself(backend, way, dtype):
    """Of the softmax over the whole row 1e-26 would be left for the others."""
    made = normalize(torch.randn(40, 16, dtype=torch.float64)).to(dtype).double()
    taught = normalize(torch.randn(40, 8, dtype=torch.float64)).to(dtype).double()
    names, results = torch.arange(40) // 4, []
    for wanted, fused in ((dtype, True), (torch.float64, False), (dtype, False)):
        x, a = made.to(wanted, copy=True).requires_grad_(), taught.to(wanted)
        if fused:
            loss = fused_intra_modal_loss(
                x.to(backend.device), names, logit_scale=20.0, soft_weight=0.5,
                teacher_features=a.to(backend.device), teacher_logit_scale=100.0,
                backend=backend.name,
            )  # fmt: skip
        else:
            loss = _dense(x, names, torch.tensor(20.0), None, True, a, 100.0, 0.5)[1]
        loss.backward()
        results.append([loss.detach().cpu(), x.grad])
    for name, *values in zip(("loss", "x"), *results, strict=True):
        assert_as_good(name, *values, dtype, magnitude=80.0)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_float64_keeps_its_digits(share, masked, way):
    x, a = (normalize(torch.randn(6, d, dtype=torch.float64)) for d in (5, 3))
    ids, s = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor(7.0, dtype=torch.float64)
    soft = {"soft_weight": share, "teacher_features": a} if share else {}
    loss = fused_intra_modal_loss(x, ids, logit_scale=s, mask_positives=masked, **soft)
    teacher = a if share else None
    expected = _dense(x, ids, s, None, masked, teacher, share=share)[1]
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)


def test_rows_and_uniform_folds(backend, way):
    x = normalize(torch.randn(12, 5)).to(backend.device)
    options = {"logit_scale": 7.0, "reduction": "none", "backend": backend.name}
    rows = fused_intra_modal_loss(x, 3, **options)
    names = torch.arange(4).repeat_interleave(3)
    expected, _ = _dense(x.cpu(), names, 7.0, None, True)
    torch.testing.assert_close(rows.cpu(), expected.float())
    assert torch.equal(rows, fused_intra_modal_loss(x, names, **options))
    teacher = normalize(torch.randn(12, 4))
    options |= {"soft_weight": 0.4, "teacher_features": teacher.to(backend.device)}
    rows = fused_intra_modal_loss(x, 3, **options)
    scale = torch.tensor(7.0)
    expected, _ = _dense(x.cpu(), names, scale, None, True, teacher, share=0.4)
    torch.testing.assert_close(rows.cpu(), expected.float())


def test_soft_alone_needs_no_instance_of_two_rows(way):
    x = normalize(torch.randn(6, 5))
    names, teacher = torch.arange(6), normalize(torch.randn(6, 3))
    soft = {"soft_weight": 1.0, "teacher_features": teacher}
    loss = fused_intra_modal_loss(x, names, logit_scale=7.0, **soft)
    expected = _dense(x, names, torch.tensor(7.0), None, True, teacher, share=1.0)[1]
    torch.testing.assert_close(loss, expected)
    together = fused_intra_modal_loss(x, 6, logit_scale=7.0, **soft)  # no negative at all
    torch.testing.assert_close(together, loss)


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
        ({"folds": 5}, ValueError, "folds: expected a number of rows that divides the 6"),
        ({"folds": True}, TypeError, "folds must be a number of rows or the ids"),
        ({"folds": [1, 1]}, ValueError, "folds: expected an id for each of the 6 rows"),
        ({"features": torch.ones(6)}, ValueError, "features must have shape"),
        ({"mask_positives": 1}, TypeError, "mask_positives must be True or False"),
        ({"rounds": 0}, ValueError, "rounds must be at least 1"),
        ({"reduction": "sum"}, ValueError, "reduction must be"),
        ({"row_weights": torch.ones(5)}, ValueError, r"row_weights must have shape \(6,\)"),
        ({"row_weights": -torch.ones(6)}, ValueError, "row_weights must not be negative or NaN"),
        ({"logit_scale": -1.0}, ValueError, "logit_scale must be positive"),
        ({"soft_weight": 2}, ValueError, "soft_weight must be between 0 and 1"),
        ({"soft_weight": 0.5}, ValueError, "soft_weight=0.5 needs teacher_features"),
        ({"teacher_logit_scale": 2.0}, ValueError, "was given without teacher features"),
        ({"teacher_features": torch.ones(6, 2)}, ValueError, "but soft_weight is 0"),
        (SOFT | {"teacher_features": torch.ones(5, 2)}, ValueError, r"must have shape \(6, D\)"),
        (SOFT | {"teacher_features": [1.0]}, TypeError, "teacher_features must be a tensor"),
        (
            SOFT | {"teacher_features": torch.ones(6, 2).double()},
            TypeError,
            "the dtype of features",
        ),
        (SOFT | {"teacher_logit_scale": 0.0}, ValueError, "teacher_logit_scale must be positive"),
        (
            SOFT | {"features": torch.ones(1, 3), "folds": 1, "teacher_features": torch.ones(1, 2)},
            ValueError,
            "features must have at least two rows for the soft loss, got 1",
        ),
    ],
)
def test_bad_arguments(change, error, message):
    good = {"features": torch.ones(6, 3), "folds": 2, "logit_scale": 1.0}
    with pytest.raises(error, match=message):
        fused_intra_modal_loss(**good | change)
