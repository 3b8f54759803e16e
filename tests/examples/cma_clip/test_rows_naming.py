from types import SimpleNamespace

import numpy as np
import pytest
import torch

from examples.data.instances import Instance
from examples.data.multifold import Observations, flatten
from examples.studies.cma_clip.data import Labels, PairSplit
from examples.studies.cma_clip.noise import Noise
from examples.studies.cma_clip.rows.measure import changed
from examples.studies.cma_clip.rows.naming import (
    captions_of,
    names_in_full,
    names_in_part,
    other_names,
    shares,
    spoken,
    with_names,
)
from examples.studies.cma_clip.rows.run import Material
from examples.studies.cma_clip.rows.run import test_pairs as check_pairs
from examples.studies.cma_clip.rows.study import RowsConfig
from examples.studies.cma_clip.rows.texts import Texts

CLASSES = {"category": ["Animals & Nature", "Food & Drink"], "subcategory": ["bird", "food-fruit"]}
INSTANCES = [
    Instance("a", (), ("red apple", "fruits, food")),
    Instance("b", (), ("nobody", "labels this")),
    Instance("c", (), ("duck", "bird, drink")),
]
LABELS = Labels(CLASSES, {task: torch.tensor([1, -1, 0]) for task in CLASSES})


@pytest.mark.parametrize(
    ("caption", "part", "full"),
    [
        ("red apple", False, False),
        ("fruits on a plate", True, False),
        ("Food, a fruit", True, True),
        ("this and other things", False, False),  # the empty words of a name do not count
        ("seafood", False, False),
    ],
)
def test_a_caption_names_its_class_by_whole_words(caption, part, full):
    assert names_in_part(caption, ["food-fruit", "other-symbol and"]) is part
    assert names_in_full(caption, ["food-fruit"]) is full


def test_names_are_put_behind_the_caption_in_plain_words():
    assert spoken("Food & Drink") == "food and drink"
    assert (
        with_names("apple", ["Food & Drink", "food-fruit"]) == "apple, food and drink, food fruit"
    )


def test_captions_know_their_rows_and_what_they_lack():
    captions = captions_of(INSTANCES, LABELS)
    assert [c.row for c in captions] == [0, 1, 4, 5]  # rows 2 and 3 have no label
    assert [c.lacks for c in captions] == [True, False, True, False]
    assert captions[0].names == ("Food & Drink", "food-fruit")
    # The wrong names are another instance's, and wrong in every task.
    assert captions[0].wrong == ("Animals & Nature", "bird")
    assert captions[2].wrong == ("Food & Drink", "food-fruit")


def test_shares_are_percent_of_the_captions():
    found = shares(captions_of(INSTANCES, LABELS), list(CLASSES))
    # "fruits, food" has a word of its category; "drink" is a word of another one.
    assert found["category"] == {"a word": 25.0, "all words": 0.0}
    assert found["subcategory"] == {"a word": 50.0, "all words": 50.0}
    assert found["any task"] == {"a word": 50.0, "all words": 50.0}


def test_wrong_names_are_wrong_in_every_task():
    labelled = [(a, b) for a in "AB" for b in "xy"]
    rng = np.random.default_rng(0)
    assert {other_names(("A", "x"), labelled, rng) for _ in range(50)} == {("B", "y")}


def made_split(*_):
    _, image_ids = flatten([[0]] * 3)
    _, text_ids = flatten([i.captions for i in INSTANCES])
    data = Observations([torch.zeros(1)] * 3, [torch.zeros(1)] * 6, image_ids, text_ids)
    return PairSplit(data, LABELS, [0, 1, 2], "test")


@pytest.fixture
def split():
    return made_split()


def test_names_are_put_into_captions_that_lack_them_alone(split):
    texts = Texts(None, {0: 6, 4: 7}, {0: 8, 4: 9}, {})
    assert split.every().texts.tolist() == [0, 1, 4, 5]
    pairs = texts.put_in(split, "right").every()
    assert pairs.texts.tolist() == [6, 1, 7, 5]
    assert changed(pairs).tolist() == [True, False, True, False]
    assert texts.put_in(split, "wrong").every().texts.tolist() == [8, 1, 9, 5]


def test_a_share_of_the_captions_gets_names_by_the_seed(split):
    right = dict.fromkeys(range(1000), 7)
    texts = Texts(None, right, {}, {})
    first = texts.put_in_some(split, 0.5, 1).replaced["text"]
    assert 400 < len(first) < 600
    assert texts.put_in_some(split, 0.5, 1).replaced["text"] == first
    assert texts.put_in_some(split, 0.5, 2).replaced["text"] != first


def test_the_tests_of_a_condition():
    texts = Texts(None, {0: 6, 4: 7}, {0: 8, 4: 9}, {})
    material = Material(RowsConfig(), SimpleNamespace(pairs=made_split), texts, None, None)
    found = check_pairs(material, "clean", 0)
    assert {name: pairs.texts.tolist() for name, (pairs, _) in found.items()} == {
        "all": [0, 1, 4, 5],
        "own": [0, 1, 4, 5],
        "right name": [6, 1, 7, 5],
        "wrong name": [8, 1, 9, 5],
    }
    assert [chosen.tolist() for _, chosen in found.values()] == [
        [True] * 4,
        *[[True, False, True, False]] * 3,
    ]


@pytest.mark.parametrize("modality", ["text", "image"])
def test_noise_is_in_the_conditions_modality_by_the_runs_seed(modality):
    data = SimpleNamespace(pairs=lambda name, seed, noise: (name, seed, noise))
    material = Material(RowsConfig(seed=7, noise_rate=0.25), data, None, None, None)
    got = material.split("val", f"{modality} noise", 2)
    assert got == ("val", 7, Noise(modality, 0.25, 72))
    assert material.split("val", "clean", 2) == ("val", 7, None)
