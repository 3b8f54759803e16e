"""The gate lets right answers through and no others."""

from dataclasses import replace

import pytest
import torch

from bench.batch import Batch
from bench.cases import Case, pairs
from bench.gate import Gate, WrongAnswerError
from bench.gate import _dense as naive_reference
from bench.providers import ALL, dense, sigmoid
from bench.providers.chunked import chunked_mfh
from bench.providers.provider import Provider
from reference.siglip import siglip_loss

CPU = torch.device("cpu")
BASE = Case(12, 10, 16, rounds=3)
CASES = {
    "rounds": BASE,
    "expectation": replace(BASE, rounds=None),
    "no teacher": replace(BASE, teacher=False),
    "one view": Case(4, 20, 16, 1, 5, rounds=2),
    "pairs": pairs(9, 16, teacher=False),
    "pairs, teacher": pairs(9, 16),
}

SIGMOID = pairs(9, 16, teacher=False, sigmoid=True)


def gated(provider, case, batch=None):
    gate = Gate(batch or Batch.make(case, CPU))
    own = gate.batch.with_leaves()
    return gate.check(provider, own, provider.prepare(own))


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without its code generator, which takes a minute."""
    compiled = torch.compile(dense._mfh, fullgraph=True, dynamic=False, backend="aot_eager")
    monkeypatch.setattr(dense, "_compiled", lambda: compiled)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_float64_reference_is_the_papers(case):
    batch = Batch.make(case, CPU)
    selection = batch.draw()
    answers = []
    for loss_of in (chunked_mfh, naive_reference):
        own = batch.with_leaves(torch.float64)
        loss = loss_of(own, selection)
        loss.backward()
        answers.append([loss.detach(), *(leaf.grad for leaf in own.leaves.values())])
    for chunked, naive in zip(*answers, strict=True):
        torch.testing.assert_close(chunked, naive, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("provider", ALL, ids=lambda p: p.name)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_timed_is_right(provider, case, traced):
    if provider.refuses(case, CPU):
        pytest.skip(provider.refuses(case, CPU))
    if provider.name.startswith("open_clip"):
        pytest.importorskip("open_clip")
    found = gated(provider, case)
    assert found["against"] == "reference/mfh.py"
    assert set(found["errors"]) == {"loss", "image", "text", "scale"}


@pytest.mark.parametrize("provider", sigmoid.PROVIDERS, ids=lambda p: p.name)
def test_what_is_timed_of_the_sigmoid_loss_is_right(provider, monkeypatch):
    if provider.refuses(SIGMOID, CPU):
        pytest.skip(provider.refuses(SIGMOID, CPU))
    if provider.name.startswith("open_clip"):
        pytest.importorskip("open_clip")
    compiled = torch.compile(sigmoid._block, fullgraph=True, dynamic=False, backend="aot_eager")
    monkeypatch.setattr(sigmoid, "_compiled", lambda: compiled)
    found = gated(provider, SIGMOID)
    assert found["against"] == "chunked float64"
    assert set(found["errors"]) == {"loss", "image", "text", "scale"}


def test_the_float64_reference_of_the_sigmoid_loss(monkeypatch):
    monkeypatch.setattr("bench.providers.chunked.CPU_BLOCK", 20)  # two rows at a time
    own = Batch.make(SIGMOID, CPU).with_leaves(torch.float64)
    answers = []
    for loss in (
        sigmoid.chunked_sigmoid(own),
        siglip_loss(own.x, own.y, own.image_ids, own.text_ids, scale=own.scale, bias=sigmoid.BIAS),
    ):
        answers.append((loss, *torch.autograd.grad(loss, list(own.leaves.values()))))
    for chunked, dense_one in zip(*answers, strict=True):
        torch.testing.assert_close(chunked, dense_one, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_are_held_to_the_naive_error(dtype):
    provider = next(p for p in ALL if p.name == "blocked")
    errors = gated(provider, replace(BASE, dtype=dtype))["errors"]
    assert errors["image"]["error"] <= errors["image"]["allowed"] < errors["image"]["norm"] / 10


def test_a_large_batch_is_held_to_the_chunked_reference(monkeypatch):
    monkeypatch.setattr("bench.gate.NAIVE_LIMIT", 0)
    assert gated(Provider("dense", dense._eager), BASE)["against"] == "chunked float64"


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.001


WRONG = {
    "loss": lambda batch, selection: dense._eager(batch, selection) + 1e-3,
    "image": lambda batch, selection: dense._eager(
        replace(batch, x=_Scaled.apply(batch.x)), selection
    ),
    "scale": lambda batch, selection: dense._eager(
        replace(batch, scale=batch.scale.detach()), selection
    ),
    "loss: error inf": lambda batch, selection: dense._eager(batch, selection) * torch.nan,
}


@pytest.mark.parametrize(("name", "loss"), WRONG.items(), ids=WRONG)
def test_a_wrong_answer_is_refused(name, loss):
    with pytest.raises(WrongAnswerError, match=f"^{name}"):
        gated(Provider("wrong", loss), BASE)


def test_another_draw_is_refused():
    def first_round_only(batch, selection):
        return dense._eager(batch, (selection[0][:1], selection[1][:1]))

    with pytest.raises(WrongAnswerError):
        gated(Provider("one round", first_round_only), BASE)
