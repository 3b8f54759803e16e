import pytest
import torch

from examples.data.instances import Instance
from examples.studies.cma_clip import prepare
from examples.studies.cma_clip.config import Config
from examples.studies.cma_clip.noise import Noise
from examples.studies.cma_clip.prepare import DataSet, aligned_encoders

from .tiny import make_labels, observations

COUNT = 40


@pytest.fixture
def whole():
    instances = [Instance(f"instance {i}", (), ()) for i in range(COUNT)]
    return DataSet(instances, observations(COUNT), make_labels(COUNT))


def splits(data, seed):
    return {split: data.members(split, seed) for split in ("train", "val", "test")}


def test_the_splits_share_nothing_and_miss_nothing(whole):
    members = splits(whole, 3)
    assert sorted(i for m in members.values() for i in m) == list(range(COUNT))
    assert [len(m) for m in members.values()] == [28, 4, 8]


def test_the_splits_are_the_seeds(whole):
    assert splits(whole, 3) == splits(whole, 3)
    for split in ("train", "val", "test"):
        assert set(whole.members(split, 3)) != set(whole.members(split, 4))


def test_the_pairs_of_a_split_are_its_members(whole):
    for split in ("train", "val", "test"):
        pairs = whole.pairs(split, 5, Noise("text", 0.5)).every()
        assert set(pairs.instances.tolist()) == set(whole.members(split, 5))
        # What replaces a caption is of the split too.
        shown = whole.observations.text_ids[pairs.texts]
        assert set(shown.tolist()) <= set(whole.members(split, 5))


def test_the_encoders_are_aligned_on_the_training_split_of_the_seed(whole, monkeypatch, tmp_path):
    seen = {}

    def run(options, material, progress_bar):
        seen.update(options=options, material=material)

    monkeypatch.setattr(prepare, "run", run)
    monkeypatch.setattr(prepare, "load_encoders", lambda options: options)
    config = Config(seed=6, alignment_epochs=2, output_dir=str(tmp_path))
    assert aligned_encoders(config, whole, progress=False) is not None
    assert (seen["options"].epochs, seen["options"].seed) == (2, 6)
    material, members = seen["material"], splits(whole, 6)
    assert rows(material.train) == rows(whole.subset(members["train"]))
    assert rows(material.evaluation) == rows(whole.subset(members["val"]))
    assert [i.name for i in material.instances] == [f"instance {i}" for i in members["val"]]
    tested = rows(whole.subset(members["test"]))
    assert not (rows(material.train) | rows(material.evaluation)) & tested


def rows(data):
    """Images by their content; test_a_subset_keeps_images_and_captions_together does the rest."""
    return {tuple(image.flatten()[:4].tolist()) for image in data.images}


def test_a_subset_keeps_images_and_captions_together(whole):
    data, part = whole.observations, whole.subset([7, 2])
    assert part.image_ids.tolist() == [0, 0, 1, 1]
    assert part.text_ids.tolist() == [0, 0, 0, 1, 1, 1]
    for place, member in enumerate((7, 2)):
        for kind, ids in (("images", "image_ids"), ("texts", "text_ids")):
            want = [
                x
                for x, i in zip(getattr(data, kind), getattr(data, ids), strict=True)
                if i == member
            ]
            got = [
                x
                for x, i in zip(getattr(part, kind), getattr(part, ids), strict=True)
                if i == place
            ]
            assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
