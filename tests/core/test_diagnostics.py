"""Diagnostics against the matrices, without changing the loss."""

import math

import pytest
import torch

from mxm_kernels import Diagnostics, Folds, Queue, fused_cwcl_loss, fused_mfh_loss
from reference.mfh import group_matrix
from tests.support.cases import NAMED_CASES


def _expected(x, y, tx, ty, positives, negatives, s):
    S, T = s * x @ y.T, s * tx @ ty.T
    best = S.masked_fill(~positives, -torch.inf).amax(1)
    worst = S.masked_fill(~negatives, -torch.inf).amax(1)
    found = negatives.any(1)
    p = T.softmax(1)
    return {
        "accuracy": float((best > worst)[positives.any(1)].double().mean()),
        "hardest_negative": float(worst[found].mean() / s),
        "teacher_entropy": float(-(p * p.log()).sum(1).mean()),
    }


@pytest.mark.parametrize("queued", [False, True])
def test_values(queued, backend):
    case = NAMED_CASES["ragged and shuffled"]
    x, y, tx, ty = case.features(torch.float64)
    ids, texts = case.ids
    same, s = group_matrix(ids, texts), 8.0
    seen, options = Diagnostics(), {}
    queue, queue_ids = torch.flip(y[:4], (0,)), torch.tensor([3, 9, 9, 1])
    if queued:
        folds = Folds.from_ids(ids, queue_ids).to(backend.device)
        options["text_queue"] = Queue(queue.float().to(backend.device), folds)

    def run(**more):
        a, b, ta, tb = (f.float().to(backend.device) for f in (x, y, tx, ty))
        return fused_mfh_loss(
            a, b, case.ids, logit_scale=s, rounds=None, teacher_image_features=ta,
            teacher_text_features=tb, backend=backend.name, **options, **more,
        )  # fmt: skip

    assert torch.equal(run(diagnostics=seen), run())
    columns, targets, positives, negatives = y, ty, same, ~same
    if queued:
        columns, targets = torch.cat([y, queue]), torch.cat([ty, queue])
        matches = group_matrix(ids, queue_ids)
        positives = torch.cat([same, torch.zeros_like(matches)], 1)
        negatives = torch.cat([~same, ~matches], 1)
    expected = {}
    rows = _expected(x, columns, tx, targets, positives, negatives, s)
    cols = _expected(y, x, ty, tx, same.T, ~same.T, s)
    for name in rows:
        expected[f"image_to_text_{name}"] = rows[name]
        expected[f"text_to_image_{name}"] = cols[name]
    expected["positive_similarity"] = float((x @ y.T)[same].mean())
    assert seen.numbers() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert seen.positive_similarity.grad_fn is None


def test_without_teacher_and_without_positives():
    x = torch.eye(4)
    seen = Diagnostics()
    fused_mfh_loss(x, x, (1, 1), logit_scale=3.0, diagnostics=seen)
    assert seen.image_to_text_teacher_entropy is None
    seen = Diagnostics()
    fused_cwcl_loss(
        x, x, logit_scale=3.0, teacher_image_features=x, teacher_text_features=x, diagnostics=seen
    )
    assert seen.image_to_text_accuracy is None
    assert float(seen.text_to_image_hardest_negative) == 1.0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_features_that_are_not_finite_show_in_every_field_that_reads_them(side, bad, backend):
    """Of one sign, so that -inf makes similarities that are -inf, which a maximum leaves out."""
    x, y, tx, ty = (torch.rand(12, 4, device=backend.device) for _ in range(4))
    (x if side == "student" else tx)[5, 1] = bad
    seen = Diagnostics()
    fused_mfh_loss(
        x, y, (3, 3), logit_scale=9.0, rounds=None, teacher_image_features=tx,
        teacher_text_features=ty, backend=backend.name, diagnostics=seen,
    )  # fmt: skip
    for name, value in seen.numbers().items():
        of_teacher = name.endswith("teacher_entropy")
        assert math.isnan(value) == (of_teacher == (side == "teacher")), name


def test_something_else_is_an_error():
    x = torch.eye(4)
    with pytest.raises(TypeError, match="diagnostics must be Diagnostics or None, got bool"):
        fused_mfh_loss(x, x, (1, 1), logit_scale=3.0, diagnostics=True)
