import pytest
import torch

from examples.data.instances import Instance
from examples.data.multifold import Observations, flatten
from examples.studies.cma_clip.data import Labels, PairSplit
from examples.studies.cma_clip.rows.measure import changed
from examples.studies.cma_clip.rows.naming import (
    captions_of,
    names_in_full,
    names_in_part,
    shares,
    spoken,
    with_names,
)
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


@pytest.fixture
def split():
    _, image_ids = flatten([[0]] * 3)
    _, text_ids = flatten([i.captions for i in INSTANCES])
    data = Observations([torch.zeros(1)] * 3, [torch.zeros(1)] * 6, image_ids, text_ids)
    return PairSplit(data, LABELS, [0, 1, 2], "test")


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
