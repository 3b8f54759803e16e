"""mini_batch_size: the gradients of the whole batch, by the library's gradient cache."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from mxm_kernels import InfoNCELoss, MFHLoss
from mxm_kernels.sentence_transformers import MultifoldLoss
from tests.support.sentences import (
    SYMMETRIC,
    bert_model,
    calls,
    gradients,
    has_their_cache,
    static_model,
    texts,
    their_cache_rounds,
    their_losses,
    tokens,
)

COLUMNS = texts("a {}", "the small {}", "big old old {}")


def needs_their_cache():
    if not has_their_cache():
        pytest.skip("this sentence-transformers has no CachedLossMixin")


@pytest.fixture
def model(tmp_path):
    needs_their_cache()
    return bert_model(tmp_path)


def step(loss, model, labels=None, seed=4, scale=1.0):
    """Value and gradients of a step from a random state."""
    model.zero_grad()
    torch.manual_seed(seed)
    value = loss(tokens(model, *COLUMNS), labels)
    (scale * value).backward()
    return value.detach(), gradients(model)


def made(model, size, loss=None, **options):
    return MultifoldLoss(
        model, loss or InfoNCELoss(), **{"positives": 1, **options}, mini_batch_size=size
    )


@pytest.mark.parametrize("positives", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_gradients_are_those_of_the_whole_batch(model, size, positives):
    labels = torch.tensor([1, 1, 2, 3, 4, 5, 6, 7])
    loss = MFHLoss(rounds=None)
    expected = step(made(model, None, loss, positives=positives), model, labels)
    seen = calls(model)
    got = step(made(model, size, loss, positives=positives), model, labels)
    torch.testing.assert_close(got, expected, **their_cache_rounds())
    assert max(seen) == min(size, 8)
    assert sum(seen) == 2 * 3 * 8  # each text twice


@pytest.mark.parametrize("directions", [("query_to_doc",), SYMMETRIC], ids=str)
def test_it_is_their_cached_loss_with_dropout(tmp_path, directions):
    """From the same random state both draw the same masks, in both passes."""
    needs_their_cache()
    model = bert_model(tmp_path, dropout=0.3)
    mode = {"directions": directions, "partition_mode": "per_direction"}
    theirs = their_losses().CachedMultipleNegativesRankingLoss(model, mini_batch_size=3, **mode)
    ours = made(model, 3, **mode)
    expected, got = step(theirs, model), step(ours, model)
    torch.testing.assert_close(got, expected, **their_cache_rounds())
    assert step(ours, model, seed=5)[0] != got[0]  # the masks matter


def test_a_scaled_loss_has_scaled_gradients(model):
    """A GradScaler and accumulation scale the loss behind the cache."""
    value, plain = step(made(model, 3), model)
    same, scaled = step(made(model, 3), model, scale=16.0)
    assert same == value
    expected = {name: 16 * gradient for name, gradient in plain.items()}
    torch.testing.assert_close(scaled, expected, **their_cache_rounds())


def test_texts_go_through_the_model_in_one_call(model):
    """Those of all columns behind the anchors; before 6.0 column after column."""
    seen = calls(model)
    step(made(model, None), model)
    one_call = find_spec("sentence_transformers.base.losses.merged_forward") is not None
    assert seen == ([8, 16] if one_call else [8, 8, 8])


def test_the_trainers_of_5_7_count_images_for_mini_batches(model):
    assert made(model, 3).requires_media_counts is True
    assert made(model, None).requires_media_counts is False


def test_evaluation_embeds_once(model):
    seen, loss = calls(model), made(model, 3)
    with torch.no_grad():
        value = loss(tokens(model, *COLUMNS))
    assert not value.requires_grad and sum(seen) == 3 * 8
    torch.testing.assert_close(value, made(model, None)(tokens(model, *COLUMNS)).detach())


@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("directions", [("query_to_doc",), SYMMETRIC], ids=str)
def test_under_matryoshka_it_is_their_loss(model, size, directions):
    losses = their_losses()
    mode = {"directions": directions, "partition_mode": "per_direction"}
    dimensions = {"matryoshka_dims": [16, 8, 4], "matryoshka_weights": [1, 0.5, 2]}
    inner = losses.MultipleNegativesRankingLoss(model, **mode)
    if size is not None:
        inner = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=size, **mode)
    expected = step(losses.MatryoshkaLoss(model, inner, **dimensions), model)
    ours = losses.MatryoshkaLoss(model, made(model, size, **mode), **dimensions)
    seen = calls(model)
    got = step(ours, model)
    torch.testing.assert_close(got, expected, **their_cache_rounds())
    assert sum(seen) == (3 * 8 if size is None else 2 * 3 * 8)  # once for all dimensions


def test_a_static_embedding_cannot_be_cut():
    needs_their_cache()
    with pytest.raises(ValueError, match="mini_batch_size cannot cut the inputs of a StaticEmb"):
        MultifoldLoss(static_model(), mini_batch_size=4)


def refused():
    with pytest.raises(ImportError, match="needs sentence-transformers 5.7 or newer.*got "):
        MultifoldLoss(torch.nn.Identity(), mini_batch_size=4)


def test_without_their_cache_the_error_names_the_version(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers.base.losses", None)
    refused()


@pytest.mark.new_process
def test_without_the_library_too():
    code = """
import sys
sys.modules["sentence_transformers"] = None
from tests.sentence_transformers.test_mini_batches import refused
refused()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
