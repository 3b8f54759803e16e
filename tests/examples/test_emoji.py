from collections import Counter

import numpy as np
import pytest
import torch

from examples.finetune.config import Config
from examples.finetune.data import load_splits
from examples.finetune.data.emoji import load_emoji, make_captions, readable
from examples.finetune.data.instances import random_splits
from examples.finetune.data.multifold import (
    LazyInputs,
    MultifoldDataset,
    Observations,
    StepSampler,
    collate,
    flatten,
)
from mxm_kernels import fused_mfh_loss


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
    splits = load_splits(Config())
    names = [{i.name for i in part} for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, names)) == len(set.union(*names))
    assert len(names[0]) > 6 * len(names[1])


def fake_observations(sizes):
    images, image_ids = flatten([[torch.tensor([float(i)])] * m for i, (m, _) in enumerate(sizes)])
    texts, text_ids = flatten([[torch.full((2 + i,), i)] * n for i, (_, n) in enumerate(sizes)])
    return Observations(images, texts, image_ids, text_ids)


def test_collate_keeps_every_observation_with_its_instance():
    data = MultifoldDataset(fake_observations([(3, 2), (1, 4), (2, 1)]), seed=0)
    batch = collate([data[0, 2], data[0, 0]])
    assert batch.images[:, 0].tolist() == [2, 2, 0, 0, 0]
    assert batch.text_lengths.tolist() == [4, 2, 2]
    assert batch.texts[1].tolist() == [0, 0, 0, 0]
    features = torch.nn.functional.normalize(torch.randn(5, 8), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(3, 8), dim=-1)
    ids = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 1])
    got = fused_mfh_loss(features, texts, batch.folds, logit_scale=10.0, rounds=None)
    logits = 10.0 * features @ texts.T
    positive = ids[0][:, None] == ids[1]

    def half(s, p):
        negatives = s.masked_fill(p, -torch.inf).logsumexp(1, keepdim=True)
        hard = torch.nn.functional.softplus(negatives - s)
        return ((hard * p).sum(1) / p.sum(1)).mean()

    want = (half(logits, positive) + half(logits.T, positive.T)) / 2
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_single_pairs_depend_on_seed_epoch_and_index_alone():
    data = MultifoldDataset(fake_observations([(5, 7)] * 4), seed=3, single_pair=True)
    item = data[1, 2]
    assert len(item[1]) == len(item[2]) == 1
    data.observations.images = list(range(20))
    draws = [[data[epoch, 0][1][0] for epoch in range(20)] for _ in range(2)]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) > 1


def test_the_sampler_goes_on_in_the_middle_of_an_epoch():
    whole = list(StepSampler(10, 3, steps=9, seed=1))
    rest = list(StepSampler(10, 3, steps=9, seed=1, start=4))
    assert rest == whole[4:]
    assert [epoch for batch in whole for epoch, _ in batch] == [0] * 9 + [1] * 9 + [2] * 9
    first_epoch = [index for batch in whole[:3] for _, index in batch]
    assert len(set(first_epoch)) == 9
    assert [i for b in whole[3:6] for _, i in b] != first_epoch


def test_lazy_inputs_decode_on_access(instances):
    inputs = LazyInputs(instances[0].images, lambda image: torch.tensor(image.size))
    assert len(inputs) == len(instances[0].images)
    assert inputs[0].tolist() == [72, 72]


def test_random_splits_are_a_function_of_the_seed(instances):
    assert random_splits(instances, 1).test == random_splits(instances, 1).test
    assert random_splits(instances, 1).test != random_splits(instances, 2).test
