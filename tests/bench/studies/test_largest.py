"""The sample of the largest batch is held to the whole matrix, and a wrong gradient is seen."""

import pytest
import torch

from bench.batch import Batch
from bench.cases import pairs
from bench.gate import WrongAnswerError
from bench.studies import largest

CPU = torch.device("cpu")


@pytest.fixture
def batch(monkeypatch):
    monkeypatch.setattr(largest, "SAMPLE", 20)
    monkeypatch.setattr(largest, "COLUMNS", 16)  # three pieces of the columns
    return Batch.make(pairs(40, 16, teacher=False, dtype="bfloat16"), CPU)


def test_a_right_step_passes_and_says_what_it_took(batch):
    took = largest.step(batch)
    errors = largest.check(batch)
    assert set(errors) == {
        f"{a} {b}" for a in ("image", "text") for b in ("log-sum-exp", "gradient")
    }
    assert took.seconds > 0 and took.peak_bytes > 0
    text = largest.page(batch, took, errors)
    assert batch.case.name in text and "error of image gradient" in text


def test_the_sample_is_that_of_the_whole_matrix():
    batch = Batch.make(pairs(40, 16, teacher=False), CPU).with_leaves(torch.float64)
    S = batch.scale * (batch.x @ batch.y.T)
    labels = torch.arange(40)
    loss = torch.nn.functional.cross_entropy(S, labels) / 2
    (loss + torch.nn.functional.cross_entropy(S.T, labels) / 2).backward()
    rows = torch.tensor([3, 0, 17])
    x, y, s = batch.x.detach(), batch.y.detach(), batch.scale.detach()
    lse, gradient = largest._sampled(x, y, s, rows, S.T.logsumexp(1).detach())
    torch.testing.assert_close(lse, S.logsumexp(1)[rows].detach())
    torch.testing.assert_close(gradient, batch.x.grad[rows])


@pytest.mark.parametrize("side", ["x", "y"])
def test_a_wrong_gradient_is_seen(batch, side):
    largest.step(batch)
    getattr(batch, side).grad.mul_(1.05)
    with pytest.raises(WrongAnswerError, match="gradient: error"):
        largest.check(batch)
