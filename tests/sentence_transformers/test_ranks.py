"""The columns of all processes together: gather_across_devices, and a group of the loss."""

import pickle
import warnings

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mxm_kernels import InfoNCELoss, MFHLoss
from mxm_kernels.sentence_transformers import MultifoldLoss
from tests.support.processes import results
from tests.support.sentences import (
    SYMMETRIC,
    Rows,
    columns,
    embedded,
    gradients,
    has_their_cache,
    ranking_loss,
    their_cache_rounds,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def shard(given, rank, world):
    share = len(given[0]["rows"]) // world
    part = slice(rank * share, (rank + 1) * share)
    return [{"rows": column["rows"].detach()[part]} for column in given]


def trained(loss, given, labels=None):
    """The value and the gradients of a step, averaged by DDP where the model is wrapped."""
    loss.model.zero_grad()
    value = loss(given, labels)
    value.backward()
    return value.detach(), gradients(getattr(loss.model, "module", loss.model))


CASES = {
    f"{len(directions)} directions, {number} columns, mini-batches of {size}": (
        directions,
        number,
        size,
    )
    for directions in (("query_to_doc",), SYMMETRIC)
    for number in (2, 4)
    for size in (None, 3)
}


def _of_both(rank, world, made):
    """Value and gradients of each loss, and theirs."""
    found = {}
    for name, loss in made.items():
        directions, number, _ = CASES[name]
        torch.manual_seed(5)
        loss.model = model = DistributedDataParallel(Rows(torch.float64))
        given = shard(columns(number, rows=8, dtype=torch.float64), rank, world)
        theirs = ranking_loss(model, directions, gather_across_devices=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's, of a function they call
            expected, wanted = trained(theirs, given)
        dist.all_reduce(expected)
        found[name] = trained(loss, given), (expected / world, wanted)
    return found


def test_gradients_are_theirs_after_ddp():
    """The losses are made and pickled where there is no process group yet."""
    has_cache = has_their_cache()
    made = {
        name: MultifoldLoss(
            Rows(torch.float64),
            InfoNCELoss(),
            positives=1,
            directions=directions,
            partition_mode="per_direction",
            gather_across_devices=True,
            mini_batch_size=size,
        )
        for name, (directions, _, size) in CASES.items()
        if size is None or has_cache
    }
    for found in results(2, _of_both, made, timeout=200):
        assert found.keys() == made.keys()
        for name, (got, expected) in found.items():
            close = CLOSE if "of None" in name else their_cache_rounds()
            torch.testing.assert_close(got, expected, **close)
            assert any(gradient.abs().max() > 1e-3 for gradient in got[1].values())


def _with_labels(rank, world):
    """Rows of one label on two ranks, and a rank with fewer rows, as at the end of an epoch."""
    torch.manual_seed(5)
    model = Rows(torch.float64)
    given = columns(5, rows=8, dtype=torch.float64)
    labels = torch.tensor([7, 1, 2, 3, 4, 7, 2, -9])
    part = slice(0, 5) if rank == 0 else slice(5, 8)
    mine = [{"rows": column["rows"].detach()[part]} for column in given]
    whole = MultifoldLoss(model, MFHLoss(rounds=None), positives=2)
    shared = MultifoldLoss(
        DistributedDataParallel(model),
        MFHLoss(rounds=None),
        positives=2,
        gather_across_devices=True,
    )
    found = []
    for of_all, of_mine in ((None, None), (labels, labels[part])):
        expected = trained(whole, given, of_all)
        found.append((trained(shared, mine, of_mine), expected))
    return found


def test_labels_hold_across_devices():
    for rank in results(2, _with_labels):
        for got, expected in rank:
            torch.testing.assert_close(got, expected, **CLOSE)
        assert rank[0][1][0] != rank[1][1][0]


def _copies(rank, world):
    """The module holds no group: it is copied and pickled after a call as before it."""
    given = shard(columns(2), rank, world)
    loss = MultifoldLoss(embedded, InfoNCELoss(), gather_across_devices=True)
    value = loss(given)
    return value, pickle.loads(pickle.dumps(loss))(given), loss.get_config_dict()


def test_it_is_pickled_after_a_call():
    for value, again, config in results(2, _copies):
        assert value == again
        assert config["gather_across_devices"] is True
        assert "process_group" not in config["loss"]


def _told(rank, world):
    """What the others learn where one rank has a wrong batch, and what one with a group says."""
    given = shard(columns(3), rank, world)
    loss = MultifoldLoss(embedded, InfoNCELoss(), positives=2, gather_across_devices=True)
    seen = []
    group = InfoNCELoss(process_group=dist.group.WORLD)
    for call in (
        lambda: loss(given[: 2 if rank else 3]),
        lambda: MultifoldLoss(embedded, group, gather_across_devices=True),
    ):
        try:
            call()
        except (TypeError, ValueError, RuntimeError) as error:
            seen.append(str(error))
    seen.append(MultifoldLoss(embedded, group).get_config_dict()["loss"])
    return seen


def test_errors_are_those_of_all_ranks():
    needs = "positives=2 needs 3 columns, the anchors first, got 2"
    twice = "gather_across_devices and process_group of the loss say the same: give one of them"
    shown = "InfoNCELoss(mask_false_negatives=True)"
    first, second = results(2, _told)
    assert first == [f"process_group: rank 1 has an error: ValueError: {needs}", twice, shown]
    assert second == [needs, twice, shown]


def test_without_a_group_it_is_the_loss_of_one_process_and_says_so_once():
    given = columns(2)
    loss = MultifoldLoss(embedded, InfoNCELoss(), gather_across_devices=True)
    with pytest.warns(UserWarning, match="torch.distributed has no process group"):
        value = loss(given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert value == loss(given) == MultifoldLoss(embedded, InfoNCELoss())(given)
