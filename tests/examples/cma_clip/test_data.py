import pytest
import torch

from examples.data.instances import Instance
from examples.options import OptionError
from examples.studies.cma_clip.data import PairSplit, emoji_labels, label
from examples.studies.cma_clip.noise import Noise

from .tiny import make_labels


def test_emoji_have_unicodes_labels():
    labels = emoji_labels()
    panda = {"category": "Animals & Nature", "subcategory": "animal-mammal"}
    assert labels["\N{PANDA FACE}"] == panda
    assert labels["\N{BLACK HEART SUIT}"]["subcategory"] == "game"  # stored with U+FE0F


def instances(*characters):
    return [Instance(character, (), ()) for character in characters]


def test_rare_subcategories_have_no_label():
    fruit, drinks, one = "\U0001f34e\U0001f34f", "\U0001f377\U0001f378", "\N{PANDA FACE}"
    labels = label(instances(*fruit, *drinks, one, "\U0001f40e", "\U0001f600"), 2)
    assert labels.classes["subcategory"] == ["animal-mammal", "drink", "food-fruit"]
    assert labels.classes["category"] == ["Animals & Nature", "Food & Drink"]
    assert labels.of["subcategory"].tolist() == [2, 2, 1, 1, 0, 0, -1]
    assert labels.of["category"].tolist() == [1, 1, 1, 1, 0, 0, -1]
    assert labels.counts == {"category": 2, "subcategory": 3}
    with pytest.raises(OptionError, match="--min_instances 3: task category needs two classes"):
        label(instances(*fruit, *drinks), 3)


def test_pairs_join_an_instance_with_itself(data):
    split = PairSplit(data, make_labels(12), range(12), "train")
    pairs = split.every()
    assert len(pairs) == 36
    assert set(pairs.images.tolist()) == set(range(24))
    assert set(pairs.texts.tolist()) == set(range(36))
    assert torch.equal(data.image_ids[pairs.images], pairs.instances)
    assert torch.equal(data.text_ids[pairs.texts], pairs.instances)
    assert torch.equal(pairs.labels["colour"], pairs.instances % 3)
    assert not (pairs.noisy_image | pairs.noisy_text).any()


def test_unlabelled_instances_are_left_out(data):
    labels = make_labels(12)
    labels.of["shape"][[1, 2]] = -1
    assert PairSplit(data, labels, range(4), "train").members == [0, 3]
    with pytest.raises(OptionError, match="the val split has 0 labelled instances, two are needed"):
        PairSplit(data, labels, [1, 2], "val")


def test_batches_have_distinct_observations_and_folds(data):
    split = PairSplit(data, make_labels(12), range(12), "train")
    batches = list(split.batches(5, 2, seed=3, epoch=0))
    assert [len(b) for b in batches] == [10, 10, 4]
    seen = torch.cat([b.instances for b in batches])
    assert torch.equal(seen.bincount(), torch.full((12,), 2))
    for batch in batches:
        assert len(set(batch.images.tolist())) == len(set(batch.texts.tolist())) == len(batch)
        tables = batch.folds.tables(len(batch), len(batch), torch.device("cpu"))
        positive = set(zip(tables.pair_images.tolist(), tables.pair_texts.tolist(), strict=True))
        ids = batch.instances
        assert positive == {tuple(p) for p in (ids[:, None] == ids).nonzero().tolist()}
    again, other = (list(split.batches(5, 2, 3, epoch)) for epoch in (0, 1))
    assert torch.equal(again[0].texts, batches[0].texts)
    assert not torch.equal(other[0].instances, batches[0].instances)
    repeated = next(split.batches(1, 5, seed=0, epoch=0))
    assert len(repeated) == 5
    assert len(set(repeated.images.tolist())) == 2


def test_noise_replaces_what_is_shown_and_nothing_else(data):
    labels = make_labels(12)
    split = PairSplit(data, labels, range(12), "test", Noise("text", 0.5, seed=4))
    pairs = split.every()
    own = data.text_ids[pairs.texts] == pairs.instances
    assert torch.equal(own, ~pairs.noisy_text)
    assert 0.25 < float(pairs.noisy_text.float().mean()) < 0.75
    assert torch.equal(data.image_ids[pairs.images], pairs.instances)
    assert not pairs.noisy_image.any()
    assert torch.equal(pairs.labels["shape"], pairs.instances % 2)
    images = PairSplit(data, labels, range(12), "test", Noise("image", 1.0)).every()
    assert images.noisy_image.all()
    assert (data.image_ids[images.images] != images.instances).all()


def test_noise_is_drawn_once_for_each_split_and_seed():
    groups = [[2 * i, 2 * i + 1] for i in range(50)]
    noise = Noise("text", 0.3, seed=0)
    drawn = noise.sources(groups, "train")
    assert drawn == noise.sources(groups, "train")
    assert drawn != noise.sources(groups, "test")
    assert drawn != Noise("text", 0.3, seed=1).sources(groups, "train")
    assert 15 < len(drawn) < 45
    assert all(row // 2 != source // 2 for row, source in drawn.items())
    assert Noise("text", 0.0).sources(groups, "train") == {}


def test_wrong_noise_is_named():
    with pytest.raises(ValueError, match="modality must be 'image' or 'text', got 'sound'"):
        Noise("sound", 0.5)
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\], got 1.5"):
        Noise("text", 1.5)
    with pytest.raises(ValueError, match="noise needs two instances or more, got 1"):
        Noise("text", 0.5).sources([[0]], "train")
