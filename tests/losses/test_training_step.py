"""Whole training steps, encoders to optimiser: compiled, and captured in a CUDA graph."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import normalize

import mxm_kernels as mxm

INSTANCES, VIEWS, CAPTIONS = 4, 3, 2
FOLDS = mxm.Folds.from_ids(
    torch.arange(INSTANCES).repeat_interleave(VIEWS),
    torch.arange(INSTANCES).repeat_interleave(CAPTIONS),
)

COMPILED_ADAM = 1e-6  # in float64: torch's compiled Adam corrects its bias in float32


class Towers(nn.Module):
    """Two encoders and the temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))
        self.text = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4))
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images, texts):
        return normalize(self.image(images), dim=1), normalize(self.text(texts), dim=1)


def batches(dtype, device="cpu", steps=4):
    generator = torch.Generator().manual_seed(1)

    def rows(count, width):
        return torch.randn(count, width, generator=generator).to(device, dtype)

    return [
        (rows(INSTANCES * VIEWS, 8), rows(INSTANCES * CAPTIONS, 6), rows(12, 5), rows(8, 5))
        for _ in range(steps)
    ]


def loss_of(towers, images, texts, teacher_images, teacher_texts, **options):
    x, y = towers(images, texts)
    return mxm.fused_mfh_loss(
        x,
        y,
        **{"folds": FOLDS, "rounds": None, **options},
        logit_scale=towers.log_scale.exp(),
        teacher_image_features=teacher_images,
        teacher_text_features=teacher_texts,
    )


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def towers(request):
    torch.compiler.reset()
    towers = Towers().to(request.param)
    if request.param == torch.float64:  # torch 2.11's compiled Adam leaves a 0-d one where it is
        towers.log_scale = nn.Parameter(towers.log_scale.detach().reshape(1))
    return towers


def trained(towers, step_of):
    """Losses and parameters after some steps; ``step_of`` makes a step of towers and optimiser."""
    towers = copy.deepcopy(towers)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=1e-3)
    step = step_of(towers, optimizer)
    losses = [step(*batch) for batch in batches(towers.log_scale.dtype)]
    return torch.stack(losses), torch.cat([p.detach().flatten() for p in towers.parameters()])


def eager_step(towers, optimizer, **options):
    def step(*batch):
        optimizer.zero_grad()
        loss = loss_of(towers, *batch, **options)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def assert_trained_alike(actual, expected, float64=1e-10):
    # Adam divides by the root of the squared gradient: where that is small, rounding counts.
    tolerance = 1e-5 if expected[0].dtype == torch.float32 else float64
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    assert float(expected[0][-1]) != float(expected[0][0])


@pytest.mark.parametrize("rounds", [None, 3])
def test_encoders_and_loss_are_one_graph(towers, rounds):
    """Forward and, by AOTAutograd, backward; the optimiser's step is compiled beside it."""
    x = torch.zeros(INSTANCES * VIEWS, 4), torch.zeros(INSTANCES * CAPTIONS, 4)
    drawn = {"rounds": None}
    if rounds is not None:
        drawn = {"selection": mxm.draw_selection(FOLDS, *x, rounds=rounds)}
    counter = CompileCounterWithBackend("aot_eager")

    def compiled_step(towers, optimizer):
        forward = torch.compile(
            lambda *batch: loss_of(towers, *batch, **drawn), fullgraph=True, backend=counter
        )
        update = torch.compile(optimizer.step, backend="aot_eager")

        def step(*batch):
            optimizer.zero_grad()
            loss = forward(*batch)
            loss.backward()
            update()
            return loss.detach()

        return step

    expected = trained(towers, lambda t, o: eager_step(t, o, **drawn))
    assert_trained_alike(trained(towers, compiled_step), expected, COMPILED_ADAM)
    assert counter.frame_count == 1  # and no step compiles it again


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"),
    reason="this torch does not trace Tensor.backward",
)
def test_forward_loss_and_backward_are_one_graph(towers):
    def compiled_step(towers, optimizer):
        def gradients(*batch):
            loss = loss_of(towers, *batch)
            loss.backward()
            return loss.detach()

        compiled = torch.compile(gradients, fullgraph=True, backend="aot_eager")

        def step(*batch):
            optimizer.zero_grad(set_to_none=False)
            loss = compiled(*batch)
            optimizer.step()
            return loss

        return step

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        actual = trained(towers, compiled_step)
    assert_trained_alike(actual, trained(towers, eager_step))


def test_the_whole_step_in_one_call(towers):
    """torch itself breaks the graph at the optimiser; the result is the same."""

    def compiled_step(towers, optimizer):
        return torch.compile(eager_step(towers, optimizer), backend="aot_eager")

    expected = trained(towers, eager_step)
    assert_trained_alike(trained(towers, compiled_step), expected, COMPILED_ADAM)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_whole_step_captured_in_a_cuda_graph():
    """As docs/compile.md has it: replayed on new batches it trains as the eager step does."""
    device = torch.device("cuda")
    given = batches(torch.float32, device, steps=6)
    folds = FOLDS.to(device)

    def start():
        torch.manual_seed(0)
        towers = Towers().to(device)
        return towers, torch.optim.AdamW(towers.parameters(), lr=1e-3, capturable=True)

    towers, optimizer = start()
    step = eager_step(towers, optimizer, folds=folds)
    expected = [step(*batch) for batch in given]

    captured, optimizer = start()
    held = [tensor.clone() for tensor in given[0]]
    warm_up = eager_step(captured, optimizer, folds=folds)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        actual = [_filled(held, batch, warm_up) for batch in given[:3]]
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = loss_of(captured, *held, folds=folds)
        loss.backward()
        optimizer.step()

    def replay(*_):
        graph.replay()
        return loss.detach().clone()

    actual += [_filled(held, batch, replay) for batch in given[3:]]
    torch.testing.assert_close(torch.stack(actual), torch.stack(expected), rtol=1e-5, atol=1e-5)
    for mine, other in zip(captured.parameters(), towers.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def _filled(held, batch, step):
    for place, tensor in zip(held, batch, strict=True):
        place.copy_(tensor)
    return step(*held)
