"""Ranks of sharded modules: all have the same number of micro-batches, or all have an error."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    fully_shard,
    register_fsdp_forward_method,
)

from mxm_kernels import GradientCache
from mxm_kernels.distributed.ranks import groups_of
from tests.support.processes import results
from tests.support.towers import Towers, Uncached, assert_close, batch, loss_of, mean_of_ranks


class Scaled(nn.Module):
    """FSDP2 shards no 0-d parameter: the scale is kept in shape [1] and returned 0-d."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = Towers()
        self.towers.log_scale = nn.Parameter(torch.tensor([2.0]))

    def forward(self, images, texts):
        output = self.towers(images, texts)
        return output | {"scale": output["scale"].reshape(())}


def fsdp_steps(rank, world):
    plain = Scaled()
    wrapped = copy.deepcopy(plain)
    mesh = init_device_mesh("cpu", (world,))
    fully_shard(wrapped.towers.image, mesh=mesh)
    fully_shard(wrapped, mesh=mesh)
    cache = GradientCache(7)
    for step in range(2):
        inputs = batch(4)
        torch.manual_seed(10 * rank + step)
        plain.zero_grad()
        loss_of(Uncached(4).encode(plain, *inputs)).backward()
        expected = mean_of_ranks({name: p.grad for name, p in plain.named_parameters()})
        wrapped.zero_grad()
        torch.manual_seed(10 * rank + step)
        loss_of(cache.encode(wrapped, *inputs)).backward()
        cache.backward()
        actual = {n: p.grad.full_tensor() for n, p in wrapped.named_parameters()}
        assert_close(actual, expected)


def test_fsdp2():
    results(2, fsdp_steps)


class Encoder(nn.Module):
    """Two layers. One may be sharded on its own. The module counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 4)
        self.given: list[int] = []

    def forward(self, rows):
        self.given.append(len(rows))
        return self.second(self.first(rows).tanh())


def sharded(model, kind, world):
    """As FSDP2 with and without a shard of its own inside, over a 2-D mesh, and FSDP1."""
    if kind == "fsdp1":
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    shape = (2, world // 2) if kind == "2-d" else (world,)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("a", "b")[: len(shape)])
    if kind != "whole":
        fully_shard(model.first, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def gradients_of(model, kind="nested"):
    """Whole ones, by name."""
    if kind == "fsdp1":
        with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
            return {n: p.grad.clone() for n, p in model.module.named_parameters()}
    return {n: p.grad.full_tensor() for n, p in model.named_parameters()}


def rows_of(rank, count):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(rank))


def loss_on(features):
    return features.square().sum() + features.pow(3).sum()


def itself(module):
    return module


def behind_a_lambda(module):
    return lambda rows: module(rows)


def unequal_steps(rank, world, kind, counts):
    """Several steps, so that what one leaves in FSDP does not harm the next."""
    plain = Encoder()
    wrapped = sharded(copy.deepcopy(plain), kind, world)
    cache = GradientCache(2)
    with torch.no_grad():  # leaves the parameters of the root whole
        cache.encode(wrapped, rows_of(9, 3))
    for step, behind in enumerate((itself, behind_a_lambda, partial)):
        rows = rows_of(rank + 10 * step, counts[rank])
        plain.zero_grad()
        loss_on(plain(rows)).backward()
        expected = mean_of_ranks({n: p.grad for n, p in plain.named_parameters()})
        wrapped.zero_grad()
        loss_on(cache.encode(behind(wrapped), rows)).backward()
        cache.backward()
        assert_close(gradients_of(wrapped, kind), expected, 1e-5)
    assert 0 not in wrapped.given
    return True


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("whole", (3, 5)),
        ("nested", (3, 5)),
        ("fsdp1", (3, 5)),
        ("nested", (1, 9)),
        ("nested", (6, 1)),
        ("2-d", (3, 1, 2, 7)),
    ],
)
def test_ranks_with_different_numbers_of_micro_batches(kind, counts):
    world = len(counts)
    assert results(world, unequal_steps, kind, counts, timeout=20) == [True] * world


def several_encoders(rank, world):
    """Two sharded encoders in one step, each with a number of its own; one is used twice."""
    mesh = init_device_mesh("cpu", (world,))
    plain = [Encoder(), Encoder()]
    wrapped = [fully_shard(copy.deepcopy(encoder), mesh=mesh) for encoder in plain]
    images, texts, more = (rows_of(3 * rank + k, n) for k, n in enumerate((3 + 4 * rank, 4, 2)))

    def loss(encode):
        (first, second), (x, y, z) = encode, (images, texts, more)
        return (first(x).sum() * second(y).sum()) + second(z).square().sum()

    loss(plain).backward()
    cache = GradientCache(2)
    for sync in (False, True):  # accumulated over two steps, communicated in the second
        with cache:
            loss([partial(cache.encode, encoder) for encoder in wrapped]).backward()
            cache.backward(sync=sync)
    for own, theirs in zip(plain, wrapped, strict=True):
        expected = mean_of_ranks({n: 2 * p.grad for n, p in own.named_parameters()})
        assert_close(gradients_of(theirs), expected, 1e-5)


def test_several_encoders():
    results(2, several_encoders, timeout=20)


def one_encoder_twice(rank, world, kind):
    """Two functions may call the module, neither surely: it synchronises after each."""
    plain = Encoder()
    wrapped = sharded(copy.deepcopy(plain), kind, world)
    x, y = rows_of(rank, 3 + 2 * rank), rows_of(rank + 5, 4)
    (plain(x).sum() * plain(y).square().sum()).backward()
    expected = mean_of_ranks({n: p.grad for n, p in plain.named_parameters()})
    cache = GradientCache(2)
    first, second = behind_a_lambda(wrapped), behind_a_lambda(wrapped)
    (cache.encode(first, x).sum() * cache.encode(second, y).square().sum()).backward()
    cache.backward()
    assert_close(gradients_of(wrapped, kind), expected, 1e-5)


@pytest.mark.parametrize("kind", ["whole", "nested", "fsdp1"])
def test_one_encoder_twice(kind):
    results(2, one_encoder_twice, kind, timeout=20)


class Both(nn.Module):
    """Two towers behind methods of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = Encoder(), Encoder()

    def encode_image(self, rows):
        return self.image(rows)

    def encode_text(self, rows):
        return self.text(rows)


def methods_of_a_sharded_module(rank, world):
    mesh = init_device_mesh("cpu", (world,))
    plain = Both()
    wrapped = copy.deepcopy(plain)
    for module in (wrapped.image, wrapped.text, wrapped):
        fully_shard(module, mesh=mesh)
    for name in ("encode_image", "encode_text"):
        register_fsdp_forward_method(wrapped, name)
    x, y = rows_of(rank, 3 + 2 * rank), rows_of(rank + 5, 4 - 3 * rank)
    (plain.encode_image(x).sum() * plain.encode_text(y).square().sum()).backward()
    expected = mean_of_ranks({n: p.grad for n, p in plain.named_parameters()})
    cache = GradientCache(2)
    features = cache.encode(wrapped.encode_image, x), cache.encode(wrapped.encode_text, y)
    (features[0].sum() * features[1].square().sum()).backward()
    cache.backward()
    assert_close(gradients_of(wrapped), expected, 1e-5)


def test_methods_of_a_sharded_module():
    results(2, methods_of_a_sharded_module, timeout=20)


def unused_on_a_rank(rank, world):
    """The features of one rank are in no loss: it goes with the others, with a gradient of 0."""
    plain = Encoder()
    wrapped = sharded(copy.deepcopy(plain), "nested", world)
    cache = GradientCache(2)
    rows = rows_of(rank, 3 + 2 * rank)
    loss = loss_on(cache.encode(wrapped, rows))
    if rank == 1:
        loss.backward()
    cache.backward()
    (rank * loss_on(plain(rows))).backward()
    expected = mean_of_ranks({n: p.grad for n, p in plain.named_parameters()})
    assert_close(gradients_of(wrapped), expected, 1e-5)
    passes = len(wrapped.given)
    cache.encode(wrapped, rows)  # skipped by all
    wrapped.zero_grad()
    loss_on(cache.encode(wrapped, rows)).backward()
    cache.backward()
    assert len(wrapped.given) - passes == 3 * 3
    return True


def test_features_that_one_rank_does_not_use():
    assert results(2, unused_on_a_rank, timeout=20) == [True] * 2


WRONG = {
    "no rows": "encode: argument 0 must have a row on every rank",
    "another number of tensors": "the ranks must agree on the number of encode's tensors",
    "no tensor": "expected a tensor with rows among the inputs, got none",
    "a gradient": "an input requires a gradient",
}


def refused(rank, world, kind):
    model = Encoder()
    if kind == "group":
        cache = GradientCache(2, process_group=dist.group.WORLD)
    else:
        cache, model = GradientCache(2), sharded(model, kind, world)
    for wrong, message in WRONG.items():
        given = {
            "no rows": [torch.randn(3 * (1 - rank), 8)],
            "another number of tensors": [torch.randn(3, 8)] * (1 + rank),
            "no tensor": [torch.randn(3, 8)] if rank == 0 else [],
            "a gradient": [torch.randn(3, 8, requires_grad=rank == 1)],
        }[wrong]
        before = len(model.given)
        with pytest.raises((ValueError, RuntimeError), match=message):
            cache.encode(model, *given)
        assert len(model.given) == before
        cache.backward()  # nothing waits
        rows = rows_of(rank, 3 + 2 * rank)  # and the group can be used again
        loss_on(cache.encode(model, rows)).backward()
        cache.backward()
    return True


@pytest.mark.parametrize("kind", ["nested", "fsdp1", "group"])
def test_what_one_rank_is_refused_all_are_told(kind):
    assert results(2, refused, kind, timeout=20) == [True] * 2


def one_rank_evaluates(rank, world):
    """Without a graph nothing is sent, and no rank waits."""
    model, cache = Encoder(), GradientCache(2, process_group=dist.group.WORLD)
    if rank == 0:
        with torch.no_grad():
            assert cache.encode(model, rows_of(0, 5)).shape == (5, 4)
        with torch.inference_mode():
            assert cache.encode(model, rows_of(0, 3)).shape == (3, 4)
    dist.barrier()
    rows = rows_of(rank, 5 - 4 * rank)
    loss_on(cache.encode(model, rows)).backward()
    cache.backward()
    assert len(model.given) - 5 * (1 - rank) == 2 * 3  # as many on both
    expected = copy.deepcopy(model)
    expected.zero_grad()
    loss_on(expected(rows)).backward()
    torch.testing.assert_close(model.first.weight.grad, expected.first.weight.grad)
    assert copy.deepcopy(cache).process_group is cache.process_group
    with pytest.raises(TypeError, match="a GradientCache with a process_group cannot be pickled"):
        pickle.dumps(cache)
    model = nn.SyncBatchNorm(4)
    assert groups_of([model]) == [dist.group.WORLD]
    assert groups_of([model.eval(), nn.parallel.DistributedDataParallel(Encoder())]) == []


def test_a_rank_may_evaluate_alone():
    results(2, one_rank_evaluates, timeout=20)


def test_process_group_is_one():
    with pytest.raises(TypeError, match="process_group must be a torch.distributed.ProcessGroup"):
        GradientCache(2, process_group=3)
