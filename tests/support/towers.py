"""Two towers, and a step of them through a gradient cache and without one."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize

from mxm_kernels import fused_mfh_loss

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
        kept, given = zip(*map(self._pieces, (images, texts["tokens"])), strict=True)
        outputs = [encoder(i, {"tokens": t}) for i, t in zip(*given, strict=True)]
        sides = zip(*(o["features"] for o in outputs), strict=True)
        features = [
            torch.cat([rows[:n] for rows, n in zip(side, real, strict=True)])
            for side, real in zip(sides, kept, strict=True)
        ]
        return {"features": tuple(features), "scale": outputs[0]["scale"]}

    def _pieces(self, rows):
        """How many rows of each part count, and the part: one without rows repeats the last.

        Twice, since one row may be what the other side has there.
        """
        parts = rows.tensor_split(self.parts)
        given = [part if len(part) else rows[-1:].repeat(2, 1) for part in parts]
        return [len(part) for part in parts], given

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


def bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


def uncached_bfloat16():
    """Without autocast's cache, which adds up the micro-batches' gradients in bfloat16."""
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


def mean_of_ranks(grads):
    for grad in grads.values():
        dist.all_reduce(grad)
        grad /= dist.get_world_size()
    return grads
