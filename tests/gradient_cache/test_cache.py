"""Gradients through the cache against those without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from mxm_kernels import GradientCache
from tests.support.towers import (
    Towers,
    Uncached,
    assert_close,
    batch,
    bfloat16,
    gradients,
    loss_of,
    uncached_bfloat16,
)


# 24 images and 20 texts.
@pytest.mark.parametrize(("micro_batch", "parts"), [(24, 1), (12, 2), (10, 3), (5, 5), (1, 24)])
def test_gradients_with_dropout(micro_batch, parts):
    towers, inputs = Towers(), batch()
    expected = gradients(Uncached(parts), towers, inputs)
    actual = gradients(GradientCache(micro_batch), towers, inputs)
    assert torch.equal(actual[0], expected[0])
    assert_close(actual[1], expected[1])


def test_with_a_momentum_teacher():
    towers, inputs = Towers(), batch()
    teacher = Towers().eval()
    expected = gradients(Uncached(3), towers, inputs, teacher=teacher)
    actual = gradients(GradientCache(8), towers, inputs, teacher=teacher)
    assert torch.equal(actual[0], expected[0])
    assert_close(actual[1], expected[1])


@pytest.mark.parametrize("scaled", [False, True])
def test_autocast_and_a_scaler(scaled):
    towers, inputs = Towers(), batch()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if scaled else None
    expected = gradients(Uncached(3), towers, inputs, uncached_bfloat16, scaler)
    actual = gradients(GradientCache(8), towers, inputs, bfloat16, scaler)
    assert_close(actual[1], expected[1], tolerance=1e-6 * (2.0**10 if scaled else 1))


def test_all_of_a_step_inside_one_autocast():
    """Autocast keeps casts of the weights; one made without a graph would cost the gradient."""
    towers, inputs = Towers(), batch()
    expected = gradients(Uncached(3), towers, inputs, uncached_bfloat16)[1]
    torch.manual_seed(3)
    cache = GradientCache(8)
    with bfloat16():
        loss_of(cache.encode(towers, *inputs)).backward()
        cache.backward()
    assert_close({name: p.grad for name, p in towers.named_parameters()}, expected)


def test_separate_encoders_and_a_parameter_outside():
    towers = Towers().eval()
    images, texts = batch()
    expected = gradients(Uncached(1), towers, (images, texts))[1]
    cache = GradientCache(7)
    x, y = cache.encode(towers.image, images), cache.encode(towers.text, texts["tokens"])
    loss_of(
        {"features": (normalize(x, dim=1), normalize(y, dim=1)), "scale": towers.log_scale.exp()}
    ).backward()
    cache.backward()
    assert_close({name: p.grad for name, p in towers.named_parameters()}, expected)


def test_an_encoder_used_for_both_sides():
    encoder, inputs = nn.Linear(8, 4), batch()[0]
    loss_of({"features": (encoder(inputs), encoder(inputs[:20])), "scale": 3.0}).backward()
    expected = encoder.weight.grad.clone()
    encoder.weight.grad = None
    cache = GradientCache(7)
    features = cache.encode(encoder, inputs), cache.encode(encoder.forward, inputs[:20])
    loss_of({"features": features, "scale": 3.0}).backward()
    cache.backward()
    assert_close({"weight": encoder.weight.grad}, {"weight": expected}, tolerance=1e-5)


def test_the_random_stream_goes_on_as_after_the_first_pass():
    towers, inputs = Towers(), batch()
    cache = GradientCache(8)
    torch.manual_seed(5)
    loss_of(cache.encode(towers, *inputs)).backward()
    want = torch.get_rng_state()
    cache.backward()
    assert torch.equal(torch.get_rng_state(), want)


def test_one_graph_at_a_time():
    """What the second pass saves for a micro-batch is gone before it saves for the next one."""
    alive: set[int] = set()
    most: list[int] = []

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            alive.add(id(self))
            most.append(len(alive))

        def __del__(self):
            alive.discard(id(self))

    encoder = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    images = batch()[0]
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        encoder(images[:8]).sum().backward()
        one_micro_batch = max(most)
        most.clear()
        cache = GradientCache(8)
        features = cache.encode(encoder, images)
        assert not most
        features.square().sum().backward()
        most.clear()
        cache.backward()
    assert max(most) == one_micro_batch


def test_a_frozen_encoder_is_encoded_once():
    calls = []
    encoder = nn.Linear(8, 4).requires_grad_(False)
    encoder.register_forward_hook(lambda *_: calls.append(1))
    cache = GradientCache(8)
    features = cache.encode(encoder, batch()[0])
    assert not features.requires_grad
    cache.backward()
    assert len(calls) == 3


@pytest.mark.parametrize("rows", [0, -1, 2.0, True, None])
def test_micro_batch_is_a_count(rows):
    with pytest.raises((TypeError, ValueError), match="micro_batch must be"):
        GradientCache(rows)


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))])
def test_one_module_is_no_tuple_of_them(module):
    """A Sequential would be taken for the tuple of its children."""
    with pytest.raises(TypeError, match="modules must be a tuple of modules, got"):
        GradientCache(4, module)
