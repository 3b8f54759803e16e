from collections import Counter

import numpy as np
import pytest
import torch

from examples.data import load_splits
from examples.data.emoji import load_emoji, make_captions, readable
from examples.data.instances import random_splits
from examples.data.multifold import LazyInputs, pad_texts


@pytest.fixture(scope="module")
def instances():
    return load_emoji()


def test_the_set_is_large_and_ragged(instances):
    assert len(instances) == len({i.name for i in instances}) > 1300
    images = Counter(len(i.images) for i in instances)
    captions = Counter(len(i.captions) for i in instances)
    assert set(images) == {3, 5}
    assert min(captions) == 2
    assert len(captions) >= 5
    assert all(len(set(i.captions)) == len(i.captions) for i in instances)


def test_every_source_renders_in_colour_or_ink(instances):
    panda = next(i for i in instances if i.name == "\N{PANDA FACE}")
    assert panda.captions[:2] == ("panda", "panda face")
    for source in panda.images:
        pixels = np.asarray(source.open())
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3
        assert pixels.std() > 20
    wave = next(i for i in instances if i.name == "\N{WAVING HAND SIGN}")
    pictures = [np.asarray(source.open()) for source in wave.images[:3]]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])


def test_captions_differ_and_deal_the_keywords():
    names = {"en": ":grinning_face:", "alias": [":grinning:"]}
    words = ["grinning_face", "face", "smile", "happy", "joy", "grin"]
    captions = make_captions(names, "GRINNING FACE", words)
    assert captions == ("grinning face", "grinning", "face, happy, grin", "smile, joy")
    assert readable(":b_button_(blood_type):") == "b button (blood type)"


def test_splits_share_no_instance():
    splits = load_splits("emoji")
    names = [{i.name for i in part} for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, names)) == len(set.union(*names))
    assert len(names[0]) > 6 * len(names[1])


def test_texts_are_padded_with_zeros():
    padded, lengths = pad_texts([torch.tensor([3, 4]), torch.tensor([5, 6, 7])])
    assert padded.tolist() == [[3, 4, 0], [5, 6, 7]]
    assert lengths.tolist() == [2, 3]


def test_lazy_inputs_decode_on_access(instances):
    inputs = LazyInputs(instances[0].images, lambda image: torch.tensor(image.size))
    assert len(inputs) == len(instances[0].images)
    assert inputs[0].tolist() == [72, 72]


def test_random_splits_are_a_function_of_the_seed(instances):
    assert random_splits(instances, 1).test == random_splits(instances, 1).test
    assert random_splits(instances, 1).test != random_splits(instances, 2).test
