"""The second pass is compared with the first: one warning for what does not repeat itself."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm

from mxm_kernels import GradientCache
from tests.support.towers import batch, bfloat16

IMAGES = batch()[0]
CHANGED = "the second pass gave other outputs than the first: "


class Counter(nn.Linear):
    """Scales by how often it ran."""

    def __init__(self) -> None:
        super().__init__(8, 4)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, rows):
        self.runs += 1
        return super().forward(rows) * (1 + self.runs)


class RunningMean(nn.Linear):
    """Subtracts a running mean, as a batch norm with a memory does."""

    def __init__(self) -> None:
        super().__init__(8, 4)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, rows):
        rows = super().forward(rows)
        if self.training:
            self.mean.lerp_(rows.detach().mean(0), 0.1)
        return rows - self.mean


class OwnDropout(nn.Linear):
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        super().__init__(8, 4)
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, rows):
        rows = super().forward(rows)
        return rows * torch.empty_like(rows).bernoulli_(0.5, generator=self.generator)


class Auxiliary(nn.Linear):
    """A 0-d output of its rows, which is another for every micro-batch."""

    def forward(self, rows):
        rows = super().forward(rows)
        return {"rows": rows, "balance": rows.square().mean()}


class Indices(nn.Linear):
    """Whole numbers that change."""

    runs = 0

    def forward(self, rows):
        self.runs += 1
        return super().forward(rows), torch.full((len(rows),), self.runs)


def step(cache, *encoders):
    """One step; the warnings of its backward."""
    outputs = [cache.encode(encoder, IMAGES) for encoder in encoders]
    loss = sum(_sum(output) for output in outputs)
    loss.backward()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache.backward()
    return [str(warning.message) for warning in caught]


def _sum(output):
    if isinstance(output, dict):
        return sum(map(_sum, output.values()))
    if isinstance(output, tuple):
        return sum(map(_sum, output))
    return output.float().square().sum()


def encoders_with_state():
    return {
        "old spectral_norm": spectral_norm(nn.Linear(8, 4)),
        "spectral_norm": nn.Sequential(
            nn.Linear(8, 64), parametrizations.spectral_norm(nn.Linear(64, 64))
        ),
        "counter": Counter(),
        "running mean": RunningMean(),
        "generator": OwnDropout(),
        "0-d": Auxiliary(8, 4),
        "whole numbers": Indices(8, 4),
    }


@pytest.mark.parametrize("name", list(encoders_with_state()))
@pytest.mark.parametrize("behind", [None, partial, lambda encoder: lambda rows: encoder(rows)])
def test_state_in_forward_is_said(name, behind):
    torch.manual_seed(0)
    encoder = encoders_with_state()[name]
    encoder = encoder if behind is None else behind(encoder)
    (message,) = step(GradientCache(8), encoder)
    called = {None: type(encoder).__name__, partial: "", "other": "<lambda>"}
    assert CHANGED in message
    assert called.get(behind, called["other"]) in message
    assert "into eval mode" in message


@pytest.mark.parametrize("name", ["spectral_norm", "running mean", "old spectral_norm"])
def test_in_eval_mode_there_is_nothing_to_say(name):
    encoder = encoders_with_state()[name]
    encoder(IMAGES)
    encoder.eval()
    assert step(GradientCache(8), encoder) == []
    cached = [p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    encoder(IMAGES).square().sum().backward()
    torch.testing.assert_close(cached, [p.grad for p in encoder.parameters()])


def test_one_warning_names_all_that_changed():
    encoders = Counter(), nn.Linear(8, 4), OwnDropout()
    (message,) = step(GradientCache(8), *encoders)
    assert "Counter (" in message and "OwnDropout (" in message
    assert "Linear (" not in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("times", "said"), [(12.0, False), (20.0, True)])
def test_rounding_is_not_said(dtype, times, said):
    """16 eps of the largest output, in the dtype of the outputs."""

    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8, 4, dtype=torch.float64))
            self.runs = 0

        def forward(self, rows):
            self.runs += 1
            made = torch.zeros(len(rows), 4, dtype=torch.float64) + 0 * self.weight.sum()
            made[:, 0] = 1.0  # the largest
            if self.runs == 5:  # the second micro-batch of the second pass
                made[3, 1] = times * torch.finfo(dtype).eps
            return made.to(dtype)

    assert bool(step(GradientCache(8), Rounded())) == said


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite(value):
    """The same in both passes: nothing to say, and another: something."""

    class Broken(nn.Linear):
        runs, once = 0, False

        def forward(self, rows):
            self.runs += 1
            rows = super().forward(rows)
            if not self.once or self.runs == 5:
                rows = rows.index_fill(1, torch.tensor(2), value)
            return rows

    assert step(GradientCache(8), Broken(8, 4)) == []
    again = Broken(8, 4)
    again.once = True
    (message,) = step(GradientCache(8), again)
    assert "Broken (inf times" in message


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (1, 8)), nn.TransformerEncoder(layer, 3))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast", [None, bfloat16])
def test_an_ordinary_encoder_repeats_itself(training, autocast):
    """Dropout, and the fast path that torch takes without a graph."""
    encoder, cache = transformer().train(training), GradientCache(7)
    if autocast is None:
        assert step(cache, encoder) == []
    else:
        with autocast():
            assert step(cache, encoder) == []


def test_the_device_is_waited_for_once(monkeypatch):
    """The numbers are read at the end of backward, not at each micro-batch."""
    reads = []
    monkeypatch.setattr(
        torch.Tensor, "__float__", lambda tensor: reads.append(1) or tensor.item(), raising=False
    )
    encoder = nn.Linear(8, 4)
    assert step(GradientCache(1), encoder) == []
    assert len(reads) == 1


def test_another_structure_in_the_second_pass_is_an_error():
    class Changing(nn.Linear):
        runs = 0

        def forward(self, rows):
            self.runs += 1
            rows = super().forward(rows)
            return (rows, rows) if self.runs > 3 else (rows,)

    with pytest.raises(RuntimeError, match="Changing returned another structure in the second"):
        step(GradientCache(8), Changing(8, 4))


def test_an_encoder_that_turns_gradients_on_keeps_no_graph_in_the_first_pass():
    encoder, cache = nn.Linear(8, 4), GradientCache(8)
    features = cache.encode(torch.enable_grad()(encoder.forward), IMAGES)
    assert features.is_leaf
    features.sum().backward()
    cache.backward()
    wanted, encoder.weight.grad = encoder.weight.grad, None
    encoder(IMAGES).sum().backward()
    torch.testing.assert_close(encoder.weight.grad, wanted)
