import pytest
import torch

from examples.data.instances import Instance
from examples.options import OptionError
from examples.studies.cma_clip import relevance
from examples.studies.cma_clip.attention import SequenceAttention
from examples.studies.cma_clip.config import Config
from examples.studies.cma_clip.data import PairSplit
from examples.studies.cma_clip.prepare import DataSet
from examples.studies.cma_clip.relevance import is_word, relevance_maps, token_names

from .tiny import make_labels, observations

NAMES = ["[CLS]", "red", ",", "apple", "[SEP]"]


@pytest.fixture
def whole():
    instances = [Instance(f"instance {i}", (), ("red, apple",) * 3) for i in range(4)]
    return DataSet(instances, observations(4), make_labels(4))


def scores(patches):
    """Relevance (token, patch): the special tokens and the comma vary most, then "apple"."""
    spread = torch.tensor([90.0, 1.0, 80.0, 5.0, 70.0])
    return spread[:, None] * torch.linspace(-1, 1, patches) + torch.arange(5)[:, None]


def maps(whole, model, monkeypatch, patches):
    split = PairSplit(whole.observations, whole.labels, range(4), "test")
    monkeypatch.setattr(relevance, "token_names", lambda config, caption: NAMES)
    monkeypatch.setattr(
        SequenceAttention,
        "relevance",
        lambda self, image, text, layer: scores(patches).expand(len(image), -1, -1),
    )
    return relevance_maps(model, whole, split.pairs([(0, 0, 0), (2, 4, 6)]), Config())


def test_a_map_is_that_of_the_word_it_names(whole, model, monkeypatch):
    grids, words = maps(whole, model, monkeypatch, 4)
    assert words == ["apple", "apple"]
    for grid in grids:
        torch.testing.assert_close(grid, scores(4)[3].view(2, 2))


def test_a_caption_without_words_has_the_first_tokens_map(whole, model, monkeypatch):
    monkeypatch.setattr(relevance, "is_word", lambda token: False)
    grids, words = maps(whole, model, monkeypatch, 4)
    assert words == ["[CLS]", "[CLS]"]
    torch.testing.assert_close(grids[0], scores(4)[0].view(2, 2))


def test_patches_that_are_no_square_are_refused(whole, model, monkeypatch):
    with pytest.raises(OptionError, match="relevance needs a square grid of patches, got 6"):
        maps(whole, model, monkeypatch, 6)


def test_words_of_both_tokenizers():
    packaged = token_names(Config(), "red apple")
    assert packaged == ["[CLS]", "red", "apple", "[SEP]"]
    clip = token_names(Config(model="ViT-B-32"), "red apple")
    assert clip[:4] == ["<start_of_text>", "red", "apple", "<end_of_text>"]
    assert [name for name in (*packaged, *clip[:4]) if is_word(name)] == ["red", "apple"] * 2
    assert not is_word(",")
