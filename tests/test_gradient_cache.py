"""Gradients through the cache against those without it."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from mxm_kernels import GradientCache, fused_mfh_loss
from tests.support.processes import results

FOLDS = (6, 5)


class Towers(nn.Module):
    """Two encoders with dropout, and the temperature, as one module."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 4))
        self.text = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 4))
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: Tensor, texts: dict[str, Tensor]) -> dict[str, object]:
        return {
            "features": (
                normalize(self.image(images).float(), dim=1),
                normalize(self.text(texts["tokens"]).float(), dim=1),
            ),
            "scale": self.log_scale.exp(),
            "unused": None,
        }


def batch(instances: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(instances)
    images = torch.randn(6 * instances, 8, generator=generator)
    return images, {"tokens": torch.randn(5 * instances, 6, generator=generator)}


def loss_of(output: dict, teacher: dict | None = None) -> Tensor:
    images, texts = output["features"]
    options = {}
    if teacher is not None:
        options["teacher_image_features"], options["teacher_text_features"] = teacher["features"]
    return fused_mfh_loss(images, texts, FOLDS, logit_scale=output["scale"], rounds=None, **options)


class Uncached:
    """The same micro-batches with their graphs kept: what a cache must reproduce."""

    def __init__(self, parts: int) -> None:
        self.parts = parts

    def encode(self, encoder, images, texts):
        pieces = images.tensor_split(self.parts), texts["tokens"].tensor_split(self.parts)
        outputs = [encoder(i, {"tokens": t}) for i, t in zip(*pieces, strict=True)]
        features = [torch.cat(rows) for rows in zip(*(o["features"] for o in outputs), strict=True)]
        return {"features": tuple(features), "scale": outputs[0]["scale"]}

    def backward(self) -> None:
        pass


def gradients(cache, towers, inputs, autocast=nullcontext, scaler=None, teacher=None):
    """Loss, and gradients of a copy of ``towers``."""
    towers = copy.deepcopy(towers)
    torch.manual_seed(3)
    with autocast():
        output = cache.encode(towers, *inputs)
        targets = None
        if teacher is not None:
            with torch.no_grad():
                targets = cache.encode(teacher, *inputs)
        loss = loss_of(output, targets)
    (loss if scaler is None else scaler.scale(loss)).backward()
    cache.backward()
    return loss.detach(), {name: p.grad for name, p in towers.named_parameters()}


def assert_close(actual, expected, tolerance=1e-6):
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(actual[name], grad, rtol=tolerance, atol=tolerance)
        assert float(grad.abs().max()) > 0, name


# 24 images and 20 texts.
@pytest.mark.parametrize(("micro_batch", "parts"), [(24, 1), (12, 2), (10, 3), (5, 5), (1, 24)])
def test_gradients_with_dropout(micro_batch, parts):
    towers, inputs = Towers(), batch()
    expected = gradients(Uncached(parts), towers, inputs)
    actual = gradients(GradientCache(micro_batch), towers, inputs)
    assert torch.equal(actual[0], expected[0])
    assert_close(actual[1], expected[1])


def test_with_a_momentum_teacher():
    towers, inputs = Towers(), batch()
    teacher = Towers().eval()
    expected = gradients(Uncached(3), towers, inputs, teacher=teacher)
    actual = gradients(GradientCache(8), towers, inputs, teacher=teacher)
    assert torch.equal(actual[0], expected[0])
    assert_close(actual[1], expected[1])


def bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


def uncached_bfloat16():
    """Without autocast's cache, which adds up the micro-batches' gradients in bfloat16."""
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


@pytest.mark.parametrize("scaled", [False, True])
def test_autocast_and_a_scaler(scaled):
    towers, inputs = Towers(), batch()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if scaled else None
    expected = gradients(Uncached(3), towers, inputs, uncached_bfloat16, scaler)
    actual = gradients(GradientCache(8), towers, inputs, bfloat16, scaler)
    assert_close(actual[1], expected[1], tolerance=1e-6 * (2.0**10 if scaled else 1))


def test_all_of_a_step_inside_one_autocast():
    """Autocast keeps casts of the weights; one made without a graph would cost the gradient."""
    towers, inputs = Towers(), batch()
    expected = gradients(Uncached(3), towers, inputs, uncached_bfloat16)[1]
    torch.manual_seed(3)
    cache = GradientCache(8)
    with bfloat16():
        loss_of(cache.encode(towers, *inputs)).backward()
        cache.backward()
    assert_close({name: p.grad for name, p in towers.named_parameters()}, expected)


def test_separate_encoders_and_a_parameter_outside():
    towers = Towers().eval()
    images, texts = batch()
    expected = gradients(Uncached(1), towers, (images, texts))[1]
    cache = GradientCache(7)
    x, y = cache.encode(towers.image, images), cache.encode(towers.text, texts["tokens"])
    loss_of(
        {"features": (normalize(x, dim=1), normalize(y, dim=1)), "scale": towers.log_scale.exp()}
    ).backward()
    cache.backward()
    assert_close({name: p.grad for name, p in towers.named_parameters()}, expected)


def test_an_encoder_used_for_both_sides():
    encoder, inputs = nn.Linear(8, 4), batch()[0]
    loss_of({"features": (encoder(inputs), encoder(inputs[:20])), "scale": 3.0}).backward()
    expected = encoder.weight.grad.clone()
    encoder.weight.grad = None
    cache = GradientCache(7)
    features = cache.encode(encoder, inputs), cache.encode(encoder.forward, inputs[:20])
    loss_of({"features": features, "scale": 3.0}).backward()
    cache.backward()
    assert_close({"weight": encoder.weight.grad}, {"weight": expected}, tolerance=1e-5)


def test_the_random_stream_goes_on_as_after_the_first_pass():
    towers, inputs = Towers(), batch()
    cache = GradientCache(8)
    torch.manual_seed(5)
    loss_of(cache.encode(towers, *inputs)).backward()
    want = torch.get_rng_state()
    cache.backward()
    assert torch.equal(torch.get_rng_state(), want)


def test_one_graph_at_a_time():
    """What the second pass saves for a micro-batch is gone before it saves for the next one."""
    alive: set[int] = set()
    most: list[int] = []

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            alive.add(id(self))
            most.append(len(alive))

        def __del__(self):
            alive.discard(id(self))

    encoder = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    images = batch()[0]
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        encoder(images[:8]).sum().backward()
        one_micro_batch = max(most)
        most.clear()
        cache = GradientCache(8)
        features = cache.encode(encoder, images)
        assert not most
        features.square().sum().backward()
        most.clear()
        cache.backward()
    assert max(most) == one_micro_batch


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


def test_a_frozen_encoder_is_encoded_once():
    calls = []
    encoder = nn.Linear(8, 4).requires_grad_(False)
    encoder.register_forward_hook(lambda *_: calls.append(1))
    cache = GradientCache(8)
    features = cache.encode(encoder, batch()[0])
    assert not features.requires_grad
    cache.backward()
    assert len(calls) == 3


class NoOutput(nn.Module):
    def forward(self, rows):
        return rows.sum(0)


class Changing(nn.Linear):
    def forward(self, rows):
        out = super().forward(rows)
        return out if len(rows) == 8 else (out, out)


IMAGES = batch()[0]
LINEAR = nn.Linear(8, 4)


@pytest.mark.parametrize(
    ("encoder", "inputs", "error", "message"),
    [
        (LINEAR, (), ValueError, "expected a tensor with rows among the inputs, got none"),
        (LINEAR, (torch.tensor(1.0),), ValueError, "expected a tensor with rows"),
        (LINEAR, (IMAGES.clone().requires_grad_(),), ValueError, "an input requires a gradient"),
        (LINEAR, (IMAGES, object()), TypeError, "inputs must be tensors.*got object"),
        (NoOutput(), (IMAGES,), ValueError, r"a row for every row.*8 in this.*shape \(8,\)"),
        (lambda rows: "features", (IMAGES,), TypeError, "must return tensors, got str"),
        (Changing(8, 4), (IMAGES[:23, :],), ValueError, "another structure"),
    ],
)
def test_message(encoder, inputs, error, message):
    if isinstance(encoder, NoOutput):
        inputs = (inputs[0][:, :5],)
        message = message.replace("(8,", "(5,")
    with pytest.raises(error, match=message):
        GradientCache(8).encode(encoder, *inputs)


@pytest.mark.parametrize("rows", [0, -1, 2.0, True, None])
def test_micro_batch_is_a_count(rows):
    with pytest.raises((TypeError, ValueError), match="micro_batch must be"):
        GradientCache(rows)


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))])
def test_one_module_is_no_tuple_of_them(module):
    """A Sequential would be taken for the tuple of its children."""
    with pytest.raises(TypeError, match="modules must be a tuple of modules, got"):
        GradientCache(4, module)


def test_inputs_that_change_between_the_passes_are_an_error():
    encoder, images = nn.Linear(8, 4), torch.randn(6, 8)
    cache = GradientCache(4)
    cache.encode(encoder, images).sum().backward()
    images.copy_(torch.randn(6, 8))  # the next batch, into the same memory
    with pytest.raises(RuntimeError, match="an input of encode was changed in place before cache"):
        cache.backward()
    with torch.inference_mode():
        images = torch.randn(6, 8)
    cache.encode(lambda rows: encoder(rows.clone()), images).sum().backward()
    cache.backward()  # without a count of changes there is nothing to compare
    assert encoder.weight.grad is not None


def test_a_forgotten_step_is_an_error():
    cache = GradientCache(8)
    features = cache.encode(LINEAR, IMAGES)
    with pytest.raises(RuntimeError, match=r"call loss.backward\(\) before"):
        cache.backward()
    features = cache.encode(LINEAR, IMAGES)
    features.sum().backward()
    with pytest.raises(RuntimeError, match=r"without cache.backward\(\) after it"):
        cache.encode(LINEAR, IMAGES)


def _mean_of_ranks(grads):
    for grad in grads.values():
        dist.all_reduce(grad)
        grad /= dist.get_world_size()
    return grads


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
        expected = _mean_of_ranks({name: p.grad for name, p in towers.named_parameters()})
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
    expected = _mean_of_ranks({name: p.grad for name, p in towers.named_parameters()})
    assert_close({n: p.grad for n, p in wrapped.module.named_parameters()}, expected)


def test_ddp_with_accumulation_over_steps():
    results(2, ddp_accumulation)


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
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

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
        expected = _mean_of_ranks({name: p.grad for name, p in plain.named_parameters()})
        wrapped.zero_grad()
        torch.manual_seed(10 * rank + step)
        loss_of(cache.encode(wrapped, *inputs)).backward()
        cache.backward()
        actual = {n: p.grad.full_tensor() for n, p in wrapped.named_parameters()}
        assert_close(actual, expected)


def test_fsdp2():
    results(2, fsdp_steps)
