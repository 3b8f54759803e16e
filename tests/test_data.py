"""The batch sampler, the dataset and the collate function of multifold data."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from mxm_kernels import Folds, fused_mfh_loss
from mxm_kernels.data import (
    InstanceKey,
    MultifoldBatch,
    MultifoldBatchSampler,
    MultifoldDataset,
    MultifoldItem,
    collate_multifold,
)

SIZES = [(3, 2), (1, 4), (2, 1), (5, 3), (1, 1), (4, 6), (2, 2), (3, 1)]  # images, texts


def ragged(sizes=SIZES, **options):
    """A dataset whose observations tell who they are: image (instance, number)."""
    images = [(i, n) for i, (m, _) in enumerate(sizes) for n in range(m)]
    texts = [(i, n) for i, (_, m) in enumerate(sizes) for n in range(m)]
    shuffled = [images[i] for i in np.random.default_rng(0).permutation(len(images))]
    image_ids, text_ids = ([i for i, _ in side] for side in (shuffled, texts))
    return MultifoldDataset(
        torch.tensor(shuffled), torch.tensor(texts), image_ids, text_ids, **options
    )


def indices(batches):
    return [[key.instance for key in batch] for batch in batches]


@pytest.mark.parametrize("num_replicas", [1, 3])
@pytest.mark.parametrize(("instances", "batch_size"), [(24, 4), (23, 4), (12, 5), (9, 3)])
def test_every_instance_is_in_one_batch_of_one_replica(instances, batch_size, num_replicas):
    replicas = [
        MultifoldBatchSampler(
            instances,
            batch_size,
            seed=5,
            drop_last=False,
            rank=rank,
            num_replicas=num_replicas,
        )
        for rank in range(num_replicas)
    ]
    batches = [indices(sampler) for sampler in replicas]
    assert Counter(i for part in batches for b in part for i in b) == Counter(range(instances))
    for sampler, part in zip(replicas, batches, strict=True):
        assert len(part) == len(sampler) == sampler.batches_per_epoch
        assert all(len(batch) == batch_size for batch in part[:-1])
    last = [len(part[-1]) for part in batches]
    assert max(last) - min(last) <= 1


def test_drop_last_leaves_full_batches():
    samplers = [
        MultifoldBatchSampler(23, 4, seed=5, rank=rank, num_replicas=2) for rank in range(2)
    ]
    batches = [indices(sampler) for sampler in samplers]
    assert [len(part) for part in batches] == [2, 2] == [len(s) for s in samplers]
    seen = [i for part in batches for batch in part for i in batch]
    assert len(seen) == len(set(seen)) == 16
    samplers[0].set_epoch(1)
    assert set(map(tuple, indices(samplers[0]))) != set(map(tuple, batches[0]))


def test_replicas_share_the_batch_of_one_process():
    whole = list(MultifoldBatchSampler(20, 6, seed=2))
    halves = [
        list(MultifoldBatchSampler(20, 3, seed=2, rank=rank, num_replicas=2)) for rank in range(2)
    ]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch, **options):
        sampler = MultifoldBatchSampler(12, 3, seed=seed, **options)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert order(1, 2)[0][0] == InstanceKey(order(1, 2)[0][0].instance, epoch=2, seed=1)
    assert indices(order(1, 2)) != indices(order(1, 3))
    assert indices(order(1, 2)) != indices(order(2, 2))
    in_order = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert indices(order(1, 2, shuffle=False)) == in_order


def test_a_resumed_epoch_goes_on_and_later_ones_are_whole():
    sampler = MultifoldBatchSampler(10, 3, seed=1)
    sampler.set_epoch(4)
    whole = list(sampler)
    resumed = MultifoldBatchSampler(10, 3, seed=1)
    resumed.resume(4, 2)
    assert len(resumed) == 1
    assert list(resumed) == whole[2:]
    resumed.set_epoch(4)  # as a library that wraps the loader does, again
    assert list(resumed) == whole[2:]
    resumed.set_epoch(5)
    assert len(list(resumed)) == len(resumed) == 3
    resumed.resume(4, 3)
    assert list(resumed) == []


def test_all_observations_keep_their_instance():
    data = ragged()
    assert len(data) == len(SIZES)
    for index, (images, texts) in enumerate(SIZES):
        item = data[index]
        assert item.instance_id == index
        assert sorted(x.tolist() for x in item.images) == [[index, n] for n in range(images)]
        assert [x.tolist() for x in item.texts] == [[index, n] for n in range(texts)]


def test_k_observations_are_drawn_without_replacement_and_every_one_is_reached():
    data = ragged(views=2, captions=3)
    reached = set()
    for epoch in range(60):
        for index, (images, texts) in enumerate(SIZES):
            item = data[InstanceKey(index, epoch, seed=7)]
            views = [tuple(x.tolist()) for x in item.images]
            captions = [tuple(x.tolist()) for x in item.texts]
            assert len(views) == len(set(views)) == min(2, images)
            assert len(captions) == len(set(captions)) == min(3, texts)
            assert {i for i, _ in views + captions} == {index}
            reached |= {("image", *v) for v in views} | {("text", *c) for c in captions}
    assert len(reached) == sum(m + n for m, n in SIZES)


def test_a_draw_is_a_function_of_the_key():
    data = ragged([(8, 8)] * 2, views=1, captions=1)

    def draws(index, seed):
        items = [data[InstanceKey(index, epoch, seed)] for epoch in range(20)]
        return [(item.images[0][1].item(), item.texts[0][1].item()) for item in items]

    assert draws(0, 1) == draws(0, 1)
    assert len(set(draws(0, 1))) > 5
    assert draws(0, 1) != draws(1, 1)
    assert draws(0, 1) != draws(0, 2)


def loader(workers, epochs=2, **options):
    data = ragged(views=2, captions=2)
    sampler = MultifoldBatchSampler(len(data), 3, seed=11, drop_last=False, **options)
    batches = DataLoader(
        data,
        batch_sampler=sampler,
        collate_fn=collate_multifold,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        yield from batches


def test_workers_change_nothing():
    here, there = list(loader(0)), list(loader(2))
    assert len(here) == len(there) == 6
    for a, b in zip(here, there, strict=True):
        assert isinstance(b, MultifoldBatch)
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.texts, b.texts)
        assert torch.equal(a.image_ids, b.image_ids)
        x, y = torch.randn(len(a.images), 4), torch.randn(len(a.texts), 4)
        losses = [
            fused_mfh_loss(x, y, batch.folds, logit_scale=3.0, rounds=None) for batch in (a, b)
        ]
        assert losses[0] == losses[1]
    assert not torch.equal(here[0].images, here[3].images)


def test_replicas_load_disjoint_instances():
    ranks = [list(loader(0, epochs=1, rank=r, num_replicas=2)) for r in range(2)]
    seen = [set(torch.cat([b.image_ids for b in part]).tolist()) for part in ranks]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(len(SIZES)))


def test_folds_are_those_of_the_rows():
    for batch in loader(0):
        assert torch.equal(batch.image_ids, batch.images[:, 0])
        assert torch.equal(batch.text_ids, batch.texts[:, 0])
        positives = batch.images[:, :1] == batch.texts[:, 0]
        tables = batch.folds.tables(*positives.shape, torch.device("cpu"))
        got = torch.zeros_like(positives)
        got[tables.pair_images, tables.pair_texts] = True
        assert torch.equal(got, positives)


def test_instances_with_one_side_only_have_no_positive():
    data = MultifoldDataset(list("ab"), ["x"], [5, 9], [-2])
    assert data.instances.tolist() == [-2, 5, 9]
    batch = collate_multifold([data[i] for i in range(3)])
    assert batch.images == ["a", "b"]
    assert repr(batch.folds) == repr(Folds.from_ids([5, 9], [-2]))


def test_collate_functions_of_the_user_and_moving():
    items = [
        MultifoldItem(3, [{"pixels": torch.ones(2)}], [torch.ones(2), torch.ones(3)]),
        MultifoldItem(1, [{"pixels": torch.zeros(2)}], [torch.ones(1)]),
    ]
    pad = partial(pad_sequence, batch_first=True)
    batch = collate_multifold(
        items, collate_texts=lambda texts: (pad(texts), [len(text) for text in texts])
    )
    assert batch.images["pixels"].tolist() == [[1, 1], [0, 0]]
    assert batch.texts[0].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    moved = batch.to("meta")
    assert moved.images["pixels"].device.type == moved.texts[0].device.type == "meta"
    assert moved.texts[1] == [2, 3, 1]
    assert moved.folds.tables(2, 3, torch.device("meta")).pairs == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning memory needs a GPU")
def test_a_loader_pins_every_part():
    data = ragged()
    (batch,) = DataLoader(data, batch_size=len(data), collate_fn=collate_multifold, pin_memory=True)
    assert batch.images.is_pinned() and batch.text_ids.is_pinned()
    assert batch.folds.tables(*map(len, batch[:2]), torch.device("cpu")).pair_images.is_pinned()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an integer, got float"),
        ({"instances": 0}, ValueError, "instances must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"rank": 2, "num_replicas": 2}, ValueError, "rank must be below num_replicas=2, got 2"),
        ({"rank": True}, TypeError, "rank must be an integer, got bool"),
        ({"batch_size": 6, "num_replicas": 2}, ValueError, "drop_last=True leaves no batch"),
        (
            {"batch_size": 3, "num_replicas": 3, "drop_last": False},
            ValueError,
            "drop_last=False leaves 1 instances to the last batch of 3",
        ),
    ],
)
def test_sampler_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        MultifoldBatchSampler(**{"instances": 10, "batch_size": 4, **arguments})


def test_errors_name_the_argument():
    sampler = MultifoldBatchSampler(10, 4)
    with pytest.raises(ValueError, match="start_batch must be at most the 2 batches"):
        sampler.resume(0, 3)
    with pytest.raises(TypeError, match="epoch must be an integer, got float"):
        sampler.set_epoch(1.0)
    with pytest.raises(
        ValueError, match="image_ids: expected an id for each of the 2 images, got 3"
    ):
        MultifoldDataset("ab", "xy", [0, 1, 1], [0, 1])
    with pytest.raises(TypeError, match="text_ids must hold integers, got dtype float64"):
        MultifoldDataset("ab", "xy", [0, 1], [0.0, 1.0])
    with pytest.raises(ValueError, match="must name at least one instance"):
        MultifoldDataset("", "", [], [])
    with pytest.raises(ValueError, match="views must be at least 1, got 0"):
        MultifoldDataset("ab", "xy", [0, 1], [0, 1], views=0)
    with pytest.raises(IndexError, match="key: expected an instance from 0 to 1, got 2"):
        MultifoldDataset("ab", "xy", [0, 1], [0, 1])[2]
    with pytest.raises(TypeError, match="key must be an InstanceKey or an integer, got float"):
        MultifoldDataset("ab", "xy", [0, 1], [0, 1])[0.5]
    with pytest.raises(ValueError, match="a batch needs texts, but its 1 instances have none"):
        collate_multifold([MultifoldItem(0, ["a"], [])])
    with pytest.raises(TypeError, match="items must be MultifoldItem, got tuple"):
        collate_multifold([(0, ["a"], ["b"])])


def test_a_batch_is_on_the_cpu_whatever_the_default_device_is():
    items = [
        MultifoldItem(3, [torch.zeros(2)] * 2, ["a"]),
        MultifoldItem(7, [torch.ones(2)], ["b"]),
    ]
    with torch.device("meta"):
        batch = collate_multifold(items)
    assert batch.image_ids.tolist() == [3, 3, 7]
    assert batch.text_ids.tolist() == [3, 7]
