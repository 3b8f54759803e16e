"""Augmented images: what is done to them, and that it depends on seed, epoch and instance alone."""

import pytest
import torch
from torch.utils.data import DataLoader

from examples.data.augment import MOST_DEGREES, AugmentedDataset, augmented, paper_augmentation
from examples.finetune.config import Config
from examples.finetune.train import Trainer, make_accelerator
from mxm_kernels.data import (
    InstanceKey,
    MultifoldBatchSampler,
    MultifoldDataset,
    collate_multifold,
)
from tests.support.tiny_run import tiny_encoders, tiny_material

SIZE = (24, 24)
IMAGE_IDS, TEXT_IDS = [0, 0, 0, 1, 1, 2, 2, 3], [0, 1, 1, 2, 3]


def make_dataset(**options):
    images = torch.rand(len(IMAGE_IDS), 3, *SIZE, generator=torch.Generator().manual_seed(0))
    return MultifoldDataset(images, torch.eye(len(TEXT_IDS)), IMAGE_IDS, TEXT_IDS, **options)


def draws(image, count=60):
    torch.manual_seed(0)
    return [paper_augmentation(image.shape[-2:])(image) for _ in range(count)]


def test_images_are_flipped_both_ways():
    ramp = torch.linspace(0, 1, 24)
    for image, side in (
        (ramp.expand(3, 24, 24), lambda x: x[:, 8:16, 12:].mean() - x[:, 8:16, :12].mean()),
        (
            ramp[:, None].expand(3, 24, 24),
            lambda x: x[:, 12:, 8:16].mean() - x[:, :12, 8:16].mean(),
        ),
    ):
        assert side(image) > 0.4
        flipped = sum(bool(side(drawn) < -0.2) for drawn in draws(image))
        assert 15 < flipped < 45  # a half of 60


def test_images_are_rotated_a_little():
    """Corners that a rotation uncovers are 0; the middle stays."""
    drawn = torch.stack(draws(torch.ones(3, *SIZE)))
    assert drawn.shape == (60, 3, *SIZE)
    assert (drawn[:, :, 8:16, 8:16] > 0.99).all()
    uncovered = (drawn == 0).float().mean((1, 2, 3))
    assert (uncovered > 0).sum() > 30
    assert uncovered.max() < torch.tan(torch.deg2rad(torch.tensor(float(MOST_DEGREES)))) / 2


def test_images_are_cropped():
    """The border, a pixel of 24 wide, is cut off on some side in most draws, and never all else."""
    image = torch.zeros(1, *SIZE)
    image[:, 1:-1, 1:-1] = 1
    shares = torch.stack(draws(image)).mean((1, 2, 3))
    whole = image.mean()
    assert (shares > whole + 0.02).any()  # rotation alone only uncovers zeros


def test_a_draw_is_a_function_of_its_key():
    plain, dataset = make_dataset(), augmented(make_dataset(), "paper")
    assert isinstance(dataset, AugmentedDataset)
    assert len(dataset) == len(plain) == 4
    state = torch.get_rng_state()
    keys = [InstanceKey(i, e, s) for i in range(3) for e in range(2) for s in range(2)]
    first = {key: torch.stack(dataset[key].images) for key in keys}
    torch.manual_seed(5)
    for key in reversed(keys):
        assert torch.equal(torch.stack(dataset[key].images), first[key])
        item = dataset[key]
        assert item.instance_id == plain[key].instance_id
        assert torch.equal(torch.stack(item.texts), torch.stack(plain[key].texts))
        assert not torch.equal(first[key], torch.stack(plain[key].images))
    a, b, c = (first[InstanceKey(0, *k)] for k in ((0, 0), (1, 0), (0, 1)))
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)
    torch.set_rng_state(state)
    dataset[keys[0]]
    assert torch.equal(torch.get_rng_state(), state)


def test_images_of_an_instance_are_augmented_differently():
    images = torch.rand(1, 3, *SIZE).expand(3, 3, *SIZE)
    dataset = augmented(MultifoldDataset(images, torch.eye(1), [0, 0, 0], [0]), "paper")
    a, b, c = dataset[InstanceKey(0)].images
    assert not torch.equal(a, b)
    assert not torch.equal(b, c)


def test_the_drawn_views_are_those_without_augmentation():
    plain = make_dataset(views=1, captions=1)
    same = AugmentedDataset(make_dataset(views=1, captions=1), lambda size: lambda image: image)
    for epoch in range(8):
        key = InstanceKey(0, epoch, 3)
        assert torch.equal(same[key].images[0], plain[key].images[0])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    dataset = augmented(make_dataset(), "paper")

    def batches(workers):
        sampler = MultifoldBatchSampler(len(dataset), 2, seed=4)
        options = {"batch_sampler": sampler, "collate_fn": collate_multifold}
        return [b.images for b in DataLoader(dataset, num_workers=workers, **options)]

    for got, want in zip(batches(workers), batches(0), strict=True):
        assert torch.equal(got, want)


def test_none_is_the_data_set_itself():
    dataset = make_dataset()
    assert augmented(dataset, "none") is dataset


def trainer_of(tmp_path, augment):
    """A trainer over images of 8 x 8, which nothing encodes."""
    config = Config(
        augment=augment, unfreeze="all", batch_size=4, cpu=True, output_dir=str(tmp_path)
    )
    accelerator = make_accelerator(config)
    encoders = tiny_encoders(config)
    material = tiny_material(config, encoders, accelerator)
    generator = torch.Generator().manual_seed(1)
    material.train.images = [
        torch.rand(3, 8, 8, generator=generator) for _ in material.train.images
    ]
    return Trainer(config, accelerator, encoders.model, material)


def images_from(trainer, step, count):
    trainer.progress.step = step
    return [b.images for _, b in zip(range(count), trainer.batches(), strict=False)]


def test_a_resumed_run_sees_the_images_of_an_uninterrupted_one(tmp_path):
    whole = images_from(trainer_of(tmp_path, "paper"), 0, 6)
    rest = images_from(trainer_of(tmp_path, "paper"), 4, 2)
    plain = images_from(trainer_of(tmp_path, "none"), 0, 6)
    assert torch.equal(rest[0], whole[4])
    assert torch.equal(rest[1], whole[5])
    assert [len(b) for b in plain] == [len(b) for b in whole]
    assert not any(torch.equal(a, b) for a, b in zip(plain, whole, strict=True))
