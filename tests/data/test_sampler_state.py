"""What the batch sampler tells libraries, and what they tell it."""

import copy
import pickle
import warnings

import pytest
import torch
from torch.utils.data import DistributedSampler, SequentialSampler
from torch.utils.data._utils.pin_memory import pin_memory

from mxm_kernels.data import MultifoldBatchSampler
from tests.data.common import expected, instances, loader, sampler


def test_a_library_finds_set_epoch():
    order = sampler()
    order.sampler.set_epoch(1)
    assert order.epoch == 1
    assert list(order) != list(sampler())


def test_the_epoch_is_that_of_the_first_batch():
    """Libraries make the iterator before they choose the epoch."""
    order = sampler()
    batches = iter(order)
    order.set_epoch(2)
    second = list(batches)
    assert second == list(order)
    assert {key.epoch for batch in second for key in batch} == {2}


def test_an_epoch_that_comes_too_late_gives_a_warning():
    order = sampler()
    batches = iter(order)
    next(batches)
    order.set_epoch(2)
    with pytest.warns(UserWarning, match=r"set_epoch\(2\) came after .* of epoch 0 had been read"):
        assert {key.epoch for key in next(batches)} == {0}
    with warnings.catch_warnings(action="error"):  # an iteration that is given up is none
        assert len(list(order)) == 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_goes_on_where_the_sampler_is(copied):
    order = sampler()
    order.resume(3, 1)
    assert copied(order).state_dict() == order.state_dict()
    assert list(copied(order)) == list(order)


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_state_goes_on_once(done):
    order = sampler()
    order.set_epoch(4)
    batches = iter(order)
    for _ in range(done):
        next(batches)
    fresh = sampler()
    fresh.load_state_dict(order.state_dict())
    assert (fresh.epoch, len(fresh)) == (4, 4)
    assert fresh.state_dict() == order.state_dict()
    assert list(fresh) == list(batches)
    assert len(list(fresh)) == 4


def test_a_library_that_counts_from_zero_gives_a_warning():
    order = sampler()
    order.resume(5, 0)
    with pytest.warns(
        UserWarning,
        match=r"set_epoch\(0\) gives up the position to resume from, batch 0 of epoch 5",
    ):
        order.set_epoch(0)
    with warnings.catch_warnings(action="error"):
        order.resume(5, 2)
        order.resume(6, 2)
        order.set_epoch(6)
        assert len(list(order)) == 2
        order.set_epoch(7)
        order.resume(7, 4)  # a finished epoch: there is no place to give up
        order.set_epoch(8)


def test_a_state_after_resuming():
    order = sampler()
    order.resume(4, 2)
    fresh = sampler()
    fresh.load_state_dict(order.state_dict())
    assert list(fresh) == list(order)
    other = sampler()
    other.load_state_dict(fresh.state_dict())  # of the whole epoch: it is finished
    assert (other.epoch, len(list(other))) == (0, 4)
    fresh.set_epoch(5)
    assert (fresh.state_dict()["epoch"], fresh.state_dict()["batch"]) == (5, 0)


def test_resuming_and_another_epoch_outdo_a_state():
    order = sampler()
    order.resume(1, 3)
    fresh = sampler()
    fresh.load_state_dict(order.state_dict())
    with pytest.warns(
        UserWarning,
        match=r"set_epoch\(2\) gives up the position to resume from, batch 3 of epoch 1",
    ):
        fresh.set_epoch(2)
    assert len(list(fresh)) == 4
    fresh.load_state_dict(order.state_dict())
    fresh.resume(1, 1)
    assert len(list(fresh)) == 3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"seed": 4}, "seed=3"),
        ({"batch_size": 2}, "instances_per_batch=3"),
        ({"num_replicas": 2}, "instances_per_batch=3"),
        ({"shuffle": False}, "shuffle=True"),
        ({"drop_last": False}, "drop_last=True"),
    ],
)
def test_a_state_of_other_batches_is_refused(options, name):
    with pytest.raises(ValueError, match=f"state_dict is of a sampler with {name}, got one with"):
        sampler(**options).load_state_dict(sampler().state_dict())


@pytest.mark.parametrize("state", [None, [], {}, {"epoch": 0, "batch": 1}])
def test_other_things_are_no_state(state):
    with pytest.raises(TypeError, match="state_dict must be what MultifoldBatchSampler.state_dict"):
        sampler().load_state_dict(state)


@pytest.mark.parametrize(("name", "value"), [("epoch", -1), ("batch", -1)])
def test_a_state_counts_from_zero(name, value):
    with pytest.raises(ValueError, match=f"state_dict's {name} must be at least 0"):
        sampler().load_state_dict({**sampler().state_dict(), name: value})


def test_states_of_equal_batches_on_other_numbers_of_processes():
    """Two processes of 3 instances have the batches of one of 6."""
    order = sampler(batch_size=6)
    next(iter(order))
    fresh = sampler(rank=1, num_replicas=2)
    fresh.load_state_dict(order.state_dict())
    assert len(list(fresh)) == 1


@pytest.mark.parametrize(
    "injected", [SequentialSampler(range(8)), DistributedSampler(range(8), 2, 0)]
)
def test_a_sampler_for_instances_says_what_to_do(injected):
    with pytest.raises(TypeError, match=r"use_distributed_sampler=False.*rank and num_replicas"):
        MultifoldBatchSampler(injected, batch_size=2)


def test_every_part_of_a_batch_is_pinned(monkeypatch):
    """Without a GPU: what the loader's pinning reaches."""
    (batch, *_) = loader(sampler())
    reached = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t, *_: reached.append(t) or t)
    batch.folds.pin_memory()
    of_folds = len(reached)
    assert of_folds > 2
    for given, tensors in (
        (batch, 4),
        ({"folds": batch.folds, "x": batch.images}, 1),
        ([batch.folds], 0),
    ):
        reached.clear()
        assert type(pin_memory(given)) is type(given)
        assert len(reached) == of_folds + tensors


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_with_pinned_memory_and_workers(workers):
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    order = sampler()
    batches = loader(order, pin_memory=torch.cuda.is_available(), **options)
    for epoch in range(2):
        order.sampler.set_epoch(epoch)
        assert len(batches) == 4
        seen = [(batch.images.tolist(), batch.texts.tolist()) for batch in batches]
        assert seen == expected(epoch)
        assert len(instances(seen)) == 12
