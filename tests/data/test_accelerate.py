"""Accelerate with the batch sampler: it chooses the epoch and shares batches between processes."""

import pytest
import torch
from torch.utils.data import DataLoader

from mxm_kernels.data import MultifoldBatch, MultifoldDataset, MultifoldItem
from tests.data.common import (
    BATCH,
    INSTANCES,
    check_epochs,
    content,
    expected,
    loader,
    sampler,
)
from tests.support.processes import as_torchrun, results, run_ranks

pytest.importorskip("accelerate")

WORLD = 2


def accelerator(**options):
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))


def epochs_of(prepared, epochs=2):
    return [[content(batch) for batch in prepared] for _ in range(epochs)]


@pytest.mark.parametrize("options", [{}, {"split_batches": True}, {"even_batches": False}])
def test_one_process(options):
    seen = epochs_of(accelerator(**options).prepare(loader(sampler())))
    assert seen == [expected(0), expected(1)]
    check_epochs(seen)


def test_workers():
    workers = {"num_workers": 2, "persistent_workers": True}
    seen = epochs_of(accelerator().prepare(loader(sampler(), **workers)))
    assert seen == [expected(0), expected(1)]


def test_one_process_goes_on_in_the_middle_of_an_epoch():
    from accelerate import skip_first_batches

    prepared = accelerator().prepare(loader(sampler()))
    rest = skip_first_batches(prepared, 1)
    rest.set_epoch(1)
    assert [content(batch) for batch in rest] == expected(1)[1:]


def shared(rank, world):
    """Two epochs of every way in which Accelerate shares batches of Folds."""
    from accelerate import skip_first_batches

    as_torchrun(rank, world)
    host = accelerator()
    assert (host.num_processes, host.process_index) == (world, rank)
    seen = {"shard": epochs_of(host.prepare(loader(sampler())))}
    halves = accelerator(split_batches=True)
    seen["split"] = epochs_of(halves.prepare(loader(sampler(batch_size=world * BATCH))))
    uneven = {"batch_size": 5, "drop_last": False}  # batches of 5, 5 and 4 instances
    seen["even"] = epochs_of(host.prepare(loader(sampler(**uneven))))
    rest = accelerator(even_batches=False).prepare(loader(sampler(**uneven)))
    seen["uneven"] = epochs_of(rest)
    # A run that goes on in epoch 1, in both ways.
    for name, batches in (("skipped", 1), ("resumed", 0)):
        order = sampler()
        rest = skip_first_batches(host.prepare(loader(order)), batches)
        rest.set_epoch(1)
        order.resume(1, 0 if batches else world)
        seen[name] = [content(batch) for batch in rest]
    return seen


def test_two_processes():
    ranks = results(WORLD, shared, timeout=120)
    for rank, (mine, other) in enumerate(zip(ranks, ranks[::-1], strict=True)):
        assert mine["shard"] == [expected(epoch)[rank::WORLD] for epoch in range(2)]
        check_epochs(mine["shard"], [other["shard"]])
        assert mine["split"] == [
            expected(epoch, rank=rank, num_replicas=WORLD) for epoch in range(2)
        ]
        check_epochs(mine["split"], [other["split"]])
        assert mine["skipped"] == mine["resumed"] == expected(1)[rank::WORLD][1:]
        # Two of three batches go to rank 0; an even share repeats instances of the first.
        assert [len(epoch) for epoch in mine["even"]] == [2, 2]
        whole = [expected(epoch, batch_size=5, drop_last=False) for epoch in range(2)]
        assert mine["uneven"] == [epoch[rank::WORLD] for epoch in whole]
        assert mine["even"][1][0] == whole[1][rank]


def by_instance(items: list[MultifoldItem]):
    """One row for each instance in every tensor: what can be concatenated and cut."""
    return {
        "images": torch.stack([torch.stack(item.images) for item in items]),
        "texts": torch.stack([torch.stack(item.texts) for item in items]),
        "ids": torch.tensor([item.instance_id for item in items]),
    }


def even_loader(**options):
    images = torch.arange(INSTANCES * 3).view(-1, 1)
    ids = torch.arange(INSTANCES).repeat_interleave(3)
    data = MultifoldDataset(images, images, ids, ids, views=2, captions=1)
    return DataLoader(data, batch_sampler=sampler(**options), collate_fn=by_instance)


def lists(loader):
    return [{name: rows.tolist() for name, rows in batch.items()} for batch in loader]


def dispatched(rank, world):
    as_torchrun(rank, world)
    every = accelerator(dispatch_batches=True).prepare(even_loader())
    options = {"dispatch_batches": True, "split_batches": True}
    halves = accelerator(**options).prepare(even_loader(batch_size=world * BATCH))
    return [[lists(prepared) for _ in range(2)] for prepared in (every, halves)]


def test_dispatched_batches_of_one_row_for_each_instance():
    alone = even_loader()
    whole = []
    for epoch in range(2):
        alone.batch_sampler.set_epoch(epoch)
        whole.append(lists(alone))
    assert whole[0] != whole[1]
    for rank, (every, halves) in enumerate(results(WORLD, dispatched, timeout=120)):
        assert every == [epoch[rank::WORLD] for epoch in whole]
        # The batch of twice the size is that of both, in the same order.
        assert halves == every


def dispatched_folds(rank, world, options):
    as_torchrun(rank, world)
    prepared = accelerator(dispatch_batches=True, **options).prepare(loader(sampler(batch_size=4)))
    return next(iter(prepared))


@pytest.mark.parametrize("options", [{}, {"split_batches": True}])
def test_dispatched_folds_are_refused(options):
    """Cut where the images are cut, texts would be lost."""
    error, other = run_ranks(WORLD, dispatched_folds, options, timeout=120)
    assert isinstance(error, TypeError) and "Folds" in str(error), error
    assert isinstance(other, Exception)


def test_a_batch_moves_as_a_whole():
    from accelerate.utils import send_to_device

    (batch, *_) = loader(sampler())
    moved = send_to_device(batch, torch.device("meta"))
    assert isinstance(moved, MultifoldBatch)
    assert {part.device.type for part in (moved.images, moved.texts, moved.image_ids)} == {"meta"}
    tables = moved.folds.tables(len(batch.images), len(batch.texts), torch.device("meta"))
    assert tables.pair_images.device.type == "meta"
