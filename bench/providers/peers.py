"""Other packages, where they are installed and compute CLIP's loss or its distillation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

from bench.batch import Batch
from bench.cases import TEMPERATURE, Case
from bench.providers.dense import HARD_WEIGHT
from bench.providers.provider import Provider


@cache
def module(name: str):
    """A package that need not be there, imported when it first runs."""
    return import_module(name)


def _open_clip(batch: Batch) -> Tensor:
    return module("open_clip.loss").ClipLoss()(batch.x, batch.y, batch.scale.to(batch.x.dtype))


def _open_clip_distill(batch: Batch) -> Tensor:
    scale = batch.scale.to(batch.x.dtype)
    hard, soft = module("open_clip.loss").DistillClipLoss()(
        batch.x, batch.y, scale, batch.teacher_x, batch.teacher_y, scale.detach()
    )
    return HARD_WEIGHT * hard + (1 - HARD_WEIGHT) * soft


def _symmetric(one_direction: Callable[[Tensor, Tensor, Tensor], Tensor], batch: Batch) -> Tensor:
    """Both directions of a linear cross-entropy whose targets are the diagonal."""
    x, y = batch.x, batch.y
    targets = torch.arange(len(x), device=x.device)
    scaled_x, scaled_y = (batch.scale * x).to(x.dtype), (batch.scale * y).to(y.dtype)
    return (one_direction(scaled_x, y, targets) + one_direction(scaled_y, x, targets)) / 2


def _cut_cross_entropy(features: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    # Without its gradient filter, which drops small terms and computes something else.
    loss = module("cut_cross_entropy").linear_cross_entropy
    return loss(features, classes, targets, filter_eps=None)


def _liger(features: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    functional = module("liger_kernel.transformers.functional")
    return functional.liger_fused_linear_cross_entropy(features, classes, targets)


def _inf_cl(batch: Batch) -> Tensor:
    flash = module("inf_cl").cal_flash_loss
    images = flash(batch.x, batch.y, scale=batch.scale).mean()
    return (images + flash(batch.y, batch.x, scale=batch.scale).mean()) / 2


def _memeff(batch: Batch) -> Tensor:
    # stable=True, its default, returns a gradient that is not the derivative of its loss.
    loss = module("memeff").MemoryEfficientCLIPLoss(
        temperature=TEMPERATURE, normalized_inputs=True, stable=False
    )
    return loss(batch.x, batch.y)


def _refuses(
    package: str, needs_teacher: bool, needs_gpu: bool, case: Case, device: torch.device
) -> str | None:
    if not case.pairs or case.teacher != needs_teacher:
        return "does not compute this loss"
    return missing(package, needs_gpu, device)


def missing(package: str, needs_gpu: bool, device: torch.device) -> str | None:
    """What a package lacks here."""
    if needs_gpu and device.type != "cuda":
        return "needs a GPU"
    if find_spec(package) is None:
        return f"the package {package} is not installed"
    return None


def _dense_bytes(case: Case) -> int:
    return case.M * case.N * (48 if case.teacher else 24)


def _clip(name: str, package: str, loss: Callable[[Batch], Tensor], **options) -> Provider:
    """A GPU package that computes CLIP's loss."""
    return Provider(
        name,
        loss,
        draw=Batch.every_positive,
        draws_outside=False,
        refuses=partial(_refuses, package, False, True),
        **options,
    )


PROVIDERS = [
    Provider(
        name,
        loss,
        draw=Batch.every_positive,
        draws_outside=False,
        refuses=partial(_refuses, "open_clip", teacher, False),
        workspace=_dense_bytes,
    )
    for name, loss, teacher in (
        ("open_clip ClipLoss", _open_clip, False),
        ("open_clip DistillClipLoss", _open_clip_distill, True),
    )
] + [
    _clip("memeff", "memeff", _memeff, scale_gradient=False),
    _clip("inf-cl", "inf_cl", _inf_cl),
    _clip("cut-cross-entropy", "cut_cross_entropy", partial(_symmetric, _cut_cross_entropy)),
    _clip("liger-kernel", "liger_kernel", partial(_symmetric, _liger)),
]
