"""Gradients through the cache under DDP."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mxm_kernels import GradientCache
from tests.support.processes import results
from tests.support.towers import (
    Towers,
    Uncached,
    assert_close,
    batch,
    loss_of,
    mean_of_ranks,
)


def ddp_steps(rank, world):
    towers = Towers()
    wrapped = DistributedDataParallel(copy.deepcopy(towers))
    syncs = []

    def count(_, bucket):
        syncs.append(bucket.index())
        future = dist.all_reduce(bucket.buffer() / world, async_op=True).get_future()
        return future.then(lambda f: f.value()[0])

    wrapped.register_comm_hook(None, count)
    cache = GradientCache(7)
    for step in range(2):  # the second step runs on DDP's rebuilt buckets
        inputs = batch(4 - rank)  # 24 and 18 images: 4 and 3 micro-batches
        torch.manual_seed(10 * rank + step)
        plain = Uncached(4 - rank).encode(towers, *inputs)
        towers.zero_grad()
        loss_of(plain).backward()
        expected = mean_of_ranks({name: p.grad for name, p in towers.named_parameters()})
        wrapped.zero_grad()
        syncs.clear()
        torch.manual_seed(10 * rank + step)
        loss_of(cache.encode(wrapped, *inputs)).backward()
        cache.backward()
        assert syncs == [0], syncs  # one bucket, once
        assert_close({n: p.grad for n, p in wrapped.module.named_parameters()}, expected)


def test_ddp_synchronises_at_the_last_micro_batch_only():
    results(2, ddp_steps)


def ddp_accumulation(rank, world):
    towers = Towers().eval()
    wrapped = DistributedDataParallel(copy.deepcopy(towers))
    cache = GradientCache(7)
    for instances, sync in ((4, False), (3, True)):
        inputs = batch(instances + rank)
        loss_of(Uncached(1).encode(towers, *inputs)).backward()
        loss_of(cache.encode(wrapped, *inputs)).backward()
        cache.backward(sync=sync)
    expected = mean_of_ranks({name: p.grad for name, p in towers.named_parameters()})
    assert_close({n: p.grad for n, p in wrapped.module.named_parameters()}, expected)


def test_ddp_with_accumulation_over_steps():
    results(2, ddp_accumulation)


def ddp_behind_a_function(rank, world):
    """Found there, so that it synchronises once, whatever the number of micro-batches."""
    towers = Towers().eval()
    wrapped = DistributedDataParallel(copy.deepcopy(towers))
    inputs = batch(4 - rank)
    loss_of(Uncached(1).encode(towers, *inputs)).backward()
    expected = mean_of_ranks({name: p.grad for name, p in towers.named_parameters()})
    cache = GradientCache(7)
    for encoder in (lambda *given: wrapped(*given), partial(wrapped)):
        wrapped.zero_grad()
        loss_of(cache.encode(encoder, *inputs)).backward()
        cache.backward()
        assert_close({n: p.grad for n, p in wrapped.module.named_parameters()}, expected)
    with wrapped.no_sync():
        wrapped.zero_grad()
        loss_of(cache.encode(wrapped, *inputs)).backward()
        cache.backward()
    grads = {n: p.grad for n, p in wrapped.module.named_parameters()}
    assert_close(mean_of_ranks(grads), expected)


def test_ddp_behind_a_function():
    results(2, ddp_behind_a_function, timeout=20)


def ddp_ragged(rank, world):
    """One rank has fewer texts than micro-batches, then one image: the last row again."""
    towers = Towers().eval()
    wrapped = DistributedDataParallel(copy.deepcopy(towers))
    images, texts = batch(2)
    for rows in (((12, 3), (5, 10)), ((1, 9), (12, 10))):
        m, n = rows[rank]
        inputs = images[:m], {"tokens": texts["tokens"][:n]}
        cache = GradientCache(2)
        for model, encode in ((towers, towers), (wrapped, partial(cache.encode, wrapped))):
            model.zero_grad()
            output = encode(*inputs)
            features = output["features"]
            (output["scale"] * features[0] @ features[1].T).square().sum().backward()
        cache.backward()
        expected = mean_of_ranks({name: p.grad for name, p in towers.named_parameters()})
        assert_close({n: p.grad for n, p in wrapped.module.named_parameters()}, expected, 1e-4)


def test_ddp_on_ragged_ranks():
    results(2, ddp_ragged, timeout=20)


class Both(torch.nn.Module):
    """A module whose methods call one of its wrapped towers each."""

    def __init__(self, image, text) -> None:
        super().__init__()
        self.image, self.text = image, text

    def embed_image(self, rows):
        return self.image(rows)

    def embed_text(self, rows):
        return self.text(rows)

    def forward(self, rows, side):
        return self.image(rows) if side == "image" else self.text(rows)


class Named:
    """No module: its method names two wrapped towers, and calls one of them."""

    def __init__(self, image, text) -> None:
        self.image, self.text = image, text

    def embed(self, rows, side):
        return self.image(rows) if side == "image" else self.text(rows)


def ddp_named_but_not_called(rank, world):
    """Each tower is averaged, although both encodings name both."""
    torch.manual_seed(2)
    towers = torch.nn.Linear(8, 4), torch.nn.Linear(6, 4)
    wrapped = [DistributedDataParallel(copy.deepcopy(tower)) for tower in towers]
    images, texts = batch(4 - rank)
    x, y = towers[0](images), towers[1](texts["tokens"])
    (x @ y.T).square().sum().backward()
    expected = mean_of_ranks({k: tower.weight.grad for k, tower in enumerate(towers)})
    owner, both = Named(*wrapped), Both(*wrapped)

    def hidden(index):
        return lambda rows: getattr(owner, ("image", "text")[index])(rows)

    encoders = (
        (GradientCache(7), partial(owner.embed, side="image"), partial(owner.embed, side="text")),
        (GradientCache(7, tuple(wrapped)), hidden(0), hidden(1)),
        (GradientCache(7), wrapped[0], partial(owner.embed, side="text")),
        (GradientCache(7), partial(owner.embed, side="image"), wrapped[1].forward),
        (GradientCache(7), both.embed_image, both.embed_text),
        (GradientCache(7), partial(both, side="image"), partial(both, side="text")),
    )
    for cache, image, text in encoders:
        for tower in wrapped:
            tower.zero_grad()
        x, y = cache.encode(image, images), cache.encode(text, texts["tokens"])
        (x @ y.T).square().sum().backward()
        cache.backward()
        assert_close({k: w.module.weight.grad for k, w in enumerate(wrapped)}, expected, 1e-4)


def test_ddp_that_is_named_but_not_called():
    results(2, ddp_named_but_not_called, timeout=20)


def ddp_of_both_sides(rank, world):
    """One encoder for both sides synchronises once, at the last micro-batch of the second."""
    torch.manual_seed(2)
    wrapped = DistributedDataParallel(torch.nn.Linear(8, 4))
    synchronised = []

    def count(_, bucket):
        synchronised.append(bucket.index())
        future = dist.all_reduce(bucket.buffer() / world, async_op=True).get_future()
        return future.then(lambda f: f.value()[0])

    wrapped.register_comm_hook(None, count)
    images, cache = batch(4 - rank)[0], GradientCache(7)
    x, y = cache.encode(partial(wrapped), images), cache.encode(wrapped, images[:9])
    (x @ y.T).square().sum().backward()
    cache.backward()
    assert synchronised == [0]


def test_ddp_of_both_sides_synchronises_once():
    results(2, ddp_of_both_sides, timeout=20)
