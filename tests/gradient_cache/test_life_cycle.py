"""Steps that are given up, and copies."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from mxm_kernels import GradientCache

IMAGES = torch.randn(24, 8, generator=torch.Generator().manual_seed(4))
LINEAR = nn.Linear(8, 4)


class Counted(nn.Linear):
    passes = 0

    def forward(self, rows):
        self.passes += 1
        return super().forward(rows)


def step(cache, encoder, rows=IMAGES):
    cache.encode(encoder, rows).square().sum().backward()
    cache.backward()


def gradient_of(encoder, rows=IMAGES):
    encoder.zero_grad()
    encoder(rows).square().sum().backward()
    wanted = encoder.weight.grad.clone()
    encoder.zero_grad()
    return wanted


def assert_a_step_is_whole(cache, encoder):
    """The next step costs two passes over its own rows, and has its own gradient."""
    wanted, before = gradient_of(encoder), encoder.passes
    step(cache, encoder)
    assert encoder.passes - before == 2 * 3
    torch.testing.assert_close(encoder.weight.grad, wanted)


def skipped(cache, encoder):
    return cache.encode(encoder, torch.full((24, 8), torch.nan)).sum()


@pytest.mark.parametrize("skips", [1, 5])
def test_a_skipped_step_costs_nothing_later(skips):
    """Without a call: what has no gradient is not encoded again."""
    cache, encoder = GradientCache(8), Counted(8, 4)
    losses = [skipped(cache, encoder) for _ in range(skips)]
    assert not any(loss.isfinite() for loss in losses)
    assert_a_step_is_whole(cache, encoder)
    skipped(cache, encoder)
    with pytest.raises(RuntimeError, match="call loss.backward"):
        cache.backward()


def test_an_input_of_a_skipped_step_may_change():
    cache, encoder, rows = GradientCache(8), Counted(8, 4), IMAGES.clone()
    cache.encode(encoder, rows)
    rows.copy_(IMAGES.flip(0))
    step(cache, encoder)
    assert encoder.weight.grad is not None


def test_reset_forgets():
    cache, encoder = GradientCache(8), Counted(8, 4)
    skipped(cache, encoder)
    cache.reset()
    cache.backward()  # nothing waits
    assert encoder.passes == 3
    skipped(cache, encoder).backward()  # its gradient too
    cache.reset()
    assert encoder.weight.grad is None
    assert_a_step_is_whole(cache, encoder)


def test_a_context_forgets_what_was_not_used():
    cache, encoder = GradientCache(8), Counted(8, 4)
    with cache as same:
        assert same is cache
        skipped(cache, encoder)
    cache.backward()
    assert encoder.passes == 3
    with cache:
        assert_a_step_is_whole(cache, encoder)
    with pytest.warns(UserWarning, match=r"ended without cache.backward\(\) after"), cache:
        skipped(cache, encoder).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with cache:
            skipped(cache, encoder).backward()
            cache.reset()
    encoder.zero_grad()
    assert_a_step_is_whole(cache, encoder)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.OutOfMemoryError("full"), KeyError()])
@pytest.mark.parametrize("where", ["encode", "loss", "gradient", "second pass"])
def test_an_exception_leaves_nothing(error, where):
    encoder, cache, failing = Counted(8, 4), GradientCache(8), []

    def fail(*_):
        if failing:
            raise error

    encoder.register_forward_hook(fail)
    with pytest.raises(type(error)), cache:  # noqa: PT012
        cache.encode(encoder, IMAGES)
        if where == "encode":
            failing.append(1)
        loss = cache.encode(encoder, IMAGES).sum()
        if where == "loss":
            raise error
        loss.backward()
        if where == "gradient":
            raise error
        failing.append(1)
        cache.backward()
    failing.clear()
    encoder.zero_grad()
    assert_a_step_is_whole(cache, encoder)


def test_contexts_inside_each_other_have_a_list_each():
    """An evaluation in the middle of a step takes nothing from it."""
    cache, encoder = GradientCache(8), Counted(8, 4)
    wanted = gradient_of(encoder)
    with cache:
        features = cache.encode(encoder, IMAGES)
        with cache:
            skipped(cache, encoder)
            with torch.no_grad():
                cache.encode(encoder, IMAGES)
        features.square().sum().backward()
        cache.backward()
    torch.testing.assert_close(encoder.weight.grad, wanted)


def test_two_encodings_for_one_loss_and_a_third_that_is_not_used():
    encoder, other, cache = Counted(8, 4), Counted(8, 4), GradientCache(8)
    (encoder(IMAGES[:12]) * other(IMAGES[12:])).sum().backward()
    wanted = [layer.weight.grad.clone() for layer in (encoder, other)]
    encoder.zero_grad(), other.zero_grad()
    encoder.passes = other.passes = 0
    with cache:
        x, y = cache.encode(encoder, IMAGES[:12]), cache.encode(other, IMAGES[12:])
        cache.encode(other, IMAGES)
        (x * y).sum().backward()
        cache.backward()
    assert (encoder.passes, other.passes) == (4, 4 + 3)
    torch.testing.assert_close([layer.weight.grad for layer in (encoder, other)], wanted)


def test_an_evaluation_between_the_passes_is_none_of_the_step():
    cache, encoder = GradientCache(8), Counted(8, 4)
    wanted = gradient_of(encoder)
    loss = cache.encode(encoder, IMAGES).square().sum()
    with torch.no_grad():
        cache.encode(encoder, IMAGES)
    loss.backward()
    with torch.no_grad():
        cache.encode(encoder, IMAGES)
    cache.backward()
    torch.testing.assert_close(encoder.weight.grad, wanted)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))]
)
def test_a_copy_has_nothing_encoded(copied):
    cache, encoder = GradientCache(8, (LINEAR,)), Counted(8, 4)
    with cache:
        loss = cache.encode(encoder, IMAGES).sum()
        other = copied(cache)
        other.backward()  # nothing waits there
        loss.backward()
        step(other, copy.deepcopy(encoder))
        cache.backward()
    assert encoder.passes == 6
    assert other.micro_batch == 8
    assert len(other.modules) == 1


def test_inputs_that_change_between_the_passes_are_an_error():
    encoder, images = nn.Linear(8, 4), torch.randn(6, 8)
    cache = GradientCache(4)
    cache.encode(encoder, images).sum().backward()
    images.copy_(torch.randn(6, 8))  # the next batch, into the same memory
    with pytest.raises(RuntimeError, match="an input of encode was changed in place before cache"):
        cache.backward()
    with torch.inference_mode():
        images = torch.randn(6, 8)
    cache.encode(lambda rows: encoder(rows.clone()), images).sum().backward()
    cache.backward()  # without a count of changes there is nothing to compare
    assert encoder.weight.grad is not None


def test_a_forgotten_step_is_an_error():
    cache = GradientCache(8)
    features = cache.encode(LINEAR, IMAGES)
    with pytest.raises(RuntimeError, match=r"call loss.backward\(\) before"):
        cache.backward()
    features = cache.encode(LINEAR, IMAGES)
    features.sum().backward()
    with pytest.raises(RuntimeError, match=r"without cache.backward\(\) after it"):
        cache.encode(LINEAR, IMAGES)
