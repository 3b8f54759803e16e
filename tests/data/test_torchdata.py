"""StatefulDataLoader of torchdata with the batch sampler: a state resumes in mid-epoch."""

import json

import pytest

from tests.data.common import check_epochs, content, expected, loader, sampler

stateful = pytest.importorskip("torchdata.stateful_dataloader")

WORKERS = [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]


def made(batch_sampler, **options):
    return loader(batch_sampler, stateful.StatefulDataLoader, **options)


def rest(batches):
    return [content(batch) for batch in batches]


@pytest.mark.parametrize("options", WORKERS)
def test_two_epochs(options):
    order = sampler()
    batches = made(order, **options)
    seen = []
    for epoch in range(2):
        order.set_epoch(epoch)
        seen.append(rest(batches))
    assert seen == [expected(0), expected(1)]
    check_epochs(seen)


@pytest.mark.parametrize(
    ("options", "done"),
    [
        *(({}, done) for done in (0, 1, 3)),
        ({"num_workers": 2}, 1),
        ({"num_workers": 2, "persistent_workers": True}, 0),
        ({"num_workers": 2, "snapshot_every_n_steps": 2}, 3),
    ],
)
def test_a_state_goes_on_in_mid_epoch(options, done):
    """The new run knows neither the epoch nor the batch, and goes on with a whole epoch."""
    order = sampler()
    batches = made(order, **options)
    order.set_epoch(1)
    iterator = iter(batches)
    for _ in range(done):
        next(iterator)
    state = batches.state_dict()
    fresh = sampler()
    resumed = made(fresh, **options)
    resumed.load_state_dict(state)
    assert rest(resumed) == expected(1)[done:]
    assert len(resumed) == len(expected(1))
    fresh.set_epoch(2)
    assert rest(resumed) == expected(2)


@pytest.mark.parametrize("options", WORKERS)
def test_the_state_of_a_finished_epoch_leaves_the_next_one_whole(options):
    order = sampler()
    batches = made(order, **options)
    rest(batches)
    fresh = sampler()
    resumed = made(fresh, **options)
    resumed.load_state_dict(batches.state_dict())
    fresh.set_epoch(1)
    assert rest(resumed) == expected(1)


def test_a_state_of_each_process():
    states = []
    for rank in range(2):
        batches = made(sampler(rank=rank, num_replicas=2, batch_size=2))
        next(iter(batches))
        states.append(json.loads(json.dumps(batches.state_dict()["_index_sampler_state"])))
    assert states[0] == states[1]  # that of one process will do for all
    for rank in range(2):
        options = {"rank": rank, "num_replicas": 2, "batch_size": 2}
        fresh = sampler(**options)
        fresh.load_state_dict(states[0])
        assert rest(loader(fresh)) == expected(0, **options)[1:]


def test_under_accelerate():
    """It looks one batch ahead, and has to be told the epoch of a resumed run."""
    accelerate = pytest.importorskip("accelerate")
    configuration = accelerate.utils.DataLoaderConfiguration(use_stateful_dataloader=True)
    host = accelerate.Accelerator(cpu=True, dataloader_config=configuration)
    prepared = host.prepare(loader(sampler()))
    prepared.set_epoch(1)
    iterator = iter(prepared)
    next(iterator)
    state = prepared.state_dict()
    resumed = host.prepare(loader(sampler()))
    resumed.load_state_dict(state)
    resumed.set_epoch(1)
    assert rest(resumed) == expected(1)[1:]
    assert rest(resumed) == expected(2)
