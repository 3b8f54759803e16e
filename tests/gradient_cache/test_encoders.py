"""Encoders that are not modules: what is behind them is found, and draws the same twice."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mxm_kernels import GradientCache
from mxm_kernels.gradient_cache import context
from mxm_kernels.gradient_cache.encoders import modules_of, name_of
from tests.support.towers import batch

GLOBAL = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
UNRELATED = nn.BatchNorm1d(4)
REGISTRY = {"tower": GLOBAL, "counts": [1, 2]}


def through_a_global(rows):
    return torch.cat([GLOBAL(part) for part in (rows,)])


def through_another_function(rows):
    return through_a_global(rows)


def through_a_registry(rows):
    return REGISTRY["tower"](rows)


class Plain:
    """No module, but it has some."""

    shared = GLOBAL

    def __init__(self, net, other=UNRELATED) -> None:
        self.net, self.other = net, other
        self.towers = {"image": net}

    def __call__(self, rows):
        return self.net(rows)

    def embed(self, rows):
        return self.pooled(rows)

    def pooled(self, rows):
        return self.behind(rows)

    @property
    def behind(self):
        return self.net

    def of_a_dict(self, rows):
        return self.towers["image"](rows)

    @classmethod
    def of_the_class(cls, rows):
        return cls.shared(rows)

    @staticmethod
    def static(rows):
        return GLOBAL(rows)

    def again(self, rows, depth=0):
        return self.again(rows, depth - 1) if depth else self.net(rows)


@dataclass(slots=True)
class Slotted:
    net: nn.Module

    def embed(self, rows):
        return self.net(rows)


def decorated(function):
    @functools.wraps(function)
    def outer(*args):
        return function(*args)

    return outer


def behind(net):
    """The same encoder in all kinds of functions."""
    owner = Plain(net)
    holder = SimpleNamespace(inner=SimpleNamespace(owner=owner))
    compiled = torch.compile(lambda rows: net(rows), backend="eager")
    return {
        "module": net,
        "method": net.forward,
        "closure": lambda rows: net(rows),
        "default": lambda rows, net=net: net(rows),
        "keyword": partial(lambda rows, *, net: net(rows), net=net),
        "partial": partial(net),
        "partial of a method": partial(owner.embed),
        "partial of a partial": partial(partial(lambda n, rows: n(rows), net)),
        "callable": owner,
        "bound": owner.embed,
        "dict": owner.of_a_dict,
        "recursive": owner.again,
        "slots": Slotted(net).embed,
        "attributes": lambda rows: holder.inner.owner.embed(rows),
        "decorated": decorated(owner.embed),
        "inner function": lambda rows: (lambda: net(rows))(),
        "no_grad": torch.enable_grad()(owner.pooled),
        "compiled": compiled,
        "compiled module": torch.compile(net, backend="eager"),
    }


KINDS = list(behind(GLOBAL))
NOT_COMPILED = [kind for kind in KINDS if not kind.startswith("compiled")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_behind_an_encoder_is_found(kind):
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    found = {part for module in modules_of(behind(net)[kind]) for part in module.modules()}
    assert net in found
    assert UNRELATED not in found


@pytest.mark.parametrize(
    "encoder",
    [
        through_a_global,
        through_another_function,
        through_a_registry,
        Plain.static,
        Plain.of_the_class,
        Plain(None).of_the_class,
        functools.lru_cache(through_a_global),
    ],
)
def test_a_module_that_is_global_is_found(encoder):
    assert modules_of(encoder) == (GLOBAL,)


def test_what_has_no_module():
    assert modules_of(torch.nn.functional.relu) == ()
    assert modules_of(torch.relu) == ()
    assert modules_of(lambda rows: rows * len(KINDS)) == ()


@pytest.mark.parametrize("kind", ["compiled", "compiled module"])
def test_a_compiled_encoder(kind):
    torch.manual_seed(0)
    net = nn.Linear(8, 4)
    net(batch()[0]).square().sum().backward()
    wanted, net.weight.grad = net.weight.grad, None
    cache = GradientCache(8)
    cache.encode(behind(net)[kind], batch()[0]).square().sum().backward()
    cache.backward()
    torch.testing.assert_close(net.weight.grad, wanted)


def test_a_long_list_is_data():
    """It is not gone through, however a function names it."""
    rows = [GLOBAL] * 1001
    assert modules_of(lambda index: rows[index]) == ()


@pytest.mark.parametrize("kind", NOT_COMPILED)
def test_batch_norm_is_said_to_differ_behind_every_encoder(kind):
    net = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    with pytest.warns(UserWarning, match="BatchNorm in training mode"):
        GradientCache(8).encode(behind(net)[kind], batch()[0])
    net.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradientCache(8).encode(behind(net)[kind], batch()[0])


@pytest.mark.parametrize(
    ("encoder", "name"),
    [
        (nn.Linear(2, 2), "Linear"),
        (nn.Linear(2, 2).forward, "Linear.forward"),
        (Plain(GLOBAL), "Plain"),
        (Plain(GLOBAL).embed, "Plain.embed"),
        (partial(through_a_global), "through_a_global"),
        (lambda rows: rows, "<lambda>"),
    ],
)
def test_the_name_of_an_encoder(encoder, name):
    assert name_of(encoder) == name


class Device:
    """The random states of two devices, as those of a GPU."""

    def __init__(self) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        self.started = True

    def is_initialized(self):
        return self.started

    def get_rng_state(self, device):
        return self.generators[device.index].get_state()

    def set_rng_state(self, state, device):
        self.generators[device.index].set_state(state)

    def dropout(self, rows, index):
        return rows * torch.empty_like(rows).bernoulli_(0.5, generator=self.generators[index])


@pytest.fixture
def device(monkeypatch):
    """In the place of the accelerator; the CPU's tensors do not say that it draws."""
    made = Device()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_device_module", lambda device: made)
    return made


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kind", NOT_COMPILED)  # a generator cannot be traced
def test_every_device_draws_the_same_twice(device, kind, index):
    seen: list[torch.Tensor] = []

    class Net(nn.Linear):
        def forward(self, rows):
            output = device.dropout(super().forward(rows), index)
            seen.append(output.detach().clone())
            return output

    cache = GradientCache(8)
    cache.encode(behind(Net(8, 4))[kind], batch()[0]).square().sum().backward()
    state = device.generators[index].get_state()
    cache.backward()
    assert torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:]))
    assert torch.equal(device.generators[index].get_state(), state)


def test_a_device_that_was_not_used_is_not_started(device):
    device.started = False
    assert context.accelerators() == []
    assert context.RandomState.current().devices == {}


def test_the_device_without_a_name(monkeypatch):
    """torch.mps has no is_initialized, and its functions take no device."""
    state = torch.get_rng_state()
    mps = SimpleNamespace(get_rng_state=lambda: state, set_rng_state=torch.set_rng_state)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "get_device_module", lambda device: mps)
    with context.RandomState.current().restored():
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_dropout_on_a_gpu_behind_a_lambda():
    net = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5)).cuda()
    seen = []
    net.register_forward_hook(lambda *given: seen.append(given[2].detach().clone()))
    cache = GradientCache(8)
    holder = {}
    holder["encoder"] = lambda rows: net(rows.cuda())
    cache.encode(lambda rows: holder["encoder"](rows), batch()[0]).sum().backward()
    cache.backward()
    assert torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:]))


def test_autocast_of_the_accelerator_is_restored(monkeypatch):
    """Where the inputs are on the CPU, and the encoder takes them to the accelerator."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    now = context.Autocast.current()
    assert [kind for kind, *_ in now.states] == ["cpu", "cuda"]


def test_batch_norm_is_said_to_differ():
    encoder = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    cache = GradientCache(8)
    with pytest.warns(UserWarning, match="BatchNorm in training mode"):
        features = cache.encode(encoder, batch()[0])
    features.square().sum().backward()
    cache.backward()
    assert encoder[1].num_batches_tracked == 6  # 3 micro-batches, twice
    images = batch()[0]
    encoder.eval().zero_grad()
    cache.encode(encoder, images).square().sum().backward()
    cache.backward()
    cached = encoder[0].weight.grad.clone()
    encoder.zero_grad()
    encoder(images).square().sum().backward()
    torch.testing.assert_close(cached, encoder[0].weight.grad)
