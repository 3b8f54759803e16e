"""SigLIP's loss, ours and others': what is timed on the cases of ``sigmoid``."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint

from bench.batch import Batch
from bench.cases import Case
from bench.providers import chunked, ours, peers
from bench.providers.dense import logits
from bench.providers.provider import Provider
from mxm_kernels import fused_siglip_loss

BIAS = -10.0  # SigLIP's at the start of a training


@cache
def _bias(device: torch.device) -> Tensor:
    return torch.tensor(BIAS, device=device)


def loss(backend: str, batch: Batch) -> Tensor:
    """The package's loss."""
    bias = _bias(batch.x.device)
    return fused_siglip_loss(
        batch.x, batch.y, logit_scale=batch.scale, logit_bias=bias, backend=backend
    )


def _block(x: Tensor, y: Tensor, scale: Tensor, first: int) -> Tensor:
    """Summed loss of the rows from ``first`` on."""
    S = logits(x, y, scale) + BIAS
    rows = torch.arange(len(x), device=x.device)
    signs = torch.full_like(S, -1.0).index_put_((rows, rows + first), S.new_ones(()))
    return -logsigmoid(signs * S).sum()


def _eager(batch: Batch) -> Tensor:
    return _block(batch.x, batch.y, batch.scale, 0) / len(batch.x)


@cache
def _compiled():
    return torch.compile(_block, fullgraph=True, dynamic=False)


def _run_compiled(batch: Batch) -> Tensor:
    return _compiled()(batch.x, batch.y, batch.scale, 0) / len(batch.x)


def chunked_sigmoid(batch: Batch) -> Tensor:
    """A block of rows at a time, recomputed in backward; in float64 the reference."""
    x, y = batch.x, batch.y
    numbers = chunked.GPU_BLOCK if x.is_cuda else chunked.CPU_BLOCK
    height = max(1, numbers // len(y))
    total = batch.scale.new_zeros(())
    for first in range(0, len(x), height):
        rows = x[first : first + height]
        total = total + checkpoint(_block, rows, y, batch.scale, first, use_reentrant=False)
    return total / len(x)


def _open_clip(batch: Batch) -> Tensor:
    x, scale, bias = batch.x, batch.scale, _bias(batch.x.device)
    loss = peers.module("open_clip.loss").SigLipLoss()
    return loss(x, batch.y, scale.to(x.dtype), bias.to(x.dtype))


def _siglip_kernel(batch: Batch) -> Tensor:
    loss = peers.module("siglip_kernel").fused_siglip_loss
    return loss(batch.x, batch.y, batch.scale.log(), _bias(batch.x.device))


def _needs(package: str, needs_gpu: bool, case: Case, device: torch.device) -> str | None:
    return peers.missing(package, needs_gpu, device)


def _bytes(case: Case) -> int:
    return case.M * case.N * 20


_every = partial(Provider, draw=Batch.every_positive, draws_outside=False)
PROVIDERS = [
    *(
        _every(name, partial(loss, name), refuses=partial(ours.refuses, name))
        for name in ("native", "blocked", "triton")
    ),
    _every("dense eager", _eager, workspace=_bytes),
    _every("dense torch.compile", _run_compiled, workspace=_bytes),
    _every("chunked PyTorch", chunked_sigmoid),
    _every(
        "open_clip SigLipLoss",
        _open_clip,
        refuses=partial(_needs, "open_clip", False),
        workspace=_bytes,
    ),
    _every("siglip-kernel", _siglip_kernel, refuses=partial(_needs, "siglip_kernel", True)),
]
