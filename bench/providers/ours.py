"""The package's loss, by backend; on a GPU also replayed as a CUDA graph."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.batch import Batch, Selection
from bench.cases import Case
from bench.providers.provider import Mark, Provider, Step
from mxm_kernels import backends, draw_selection, fused_mfh_loss
from mxm_kernels.folds import Folds


def loss(backend: str, batch: Batch) -> Tensor:
    """The MFH loss. With one pair in every instance and no teacher it is InfoNCE."""
    case = batch.case
    with nullcontext() if case.budget is None else _budget(case.budget):
        return fused_mfh_loss(
            batch.x,
            batch.y,
            Folds.uniform(case.views, case.captions),
            logit_scale=batch.scale,
            teacher_image_features=batch.teacher_x,
            teacher_text_features=batch.teacher_y,
            rounds=case.rounds,
            backend=backend,
        )


def _budget(nbytes: int):
    from mxm_kernels import memory_budget  # here: bench/against.py times versions without it

    return memory_budget(nbytes)


def _draw(batch: Batch) -> Selection:
    case = batch.case
    if case.rounds is None:
        return batch.every_positive()
    folds = Folds.uniform(case.views, case.captions)
    return draw_selection(folds, batch.x, batch.y, rounds=case.rounds)


def refuses(backend: str, case: Case, device: torch.device) -> str | None:
    """Why a backend cannot take the case."""
    return backends.load(backend).unavailable(device, case.torch_dtype)


@dataclass(frozen=True)
class GraphedProvider(Provider):
    """The same step captured once and replayed: what is left is the GPU's own time."""

    def prepare(self, batch: Batch) -> Step:
        """Warm up on a side stream, as capture asks for, then capture forward and backward."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                batch.clear()
                self.loss(batch).backward()
        torch.cuda.current_stream().wait_stream(stream)
        batch.clear()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self.loss(batch)
            loss.backward()
        captured = {name: leaf.grad for name, leaf in batch.leaves.items()}

        def step(mark: Mark) -> Tensor:
            graph.replay()
            mark()
            for name, leaf in batch.leaves.items():
                leaf.grad = captured[name]
            return loss.detach()

        return step


def _refuses_graph(case: Case, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "CUDA graphs need a CUDA device"
    if case.M * case.N > 1 << 22:
        return "launches are no cost at this size"
    return refuses("triton", case, device)


PROVIDERS = [
    Provider(
        name,
        partial(loss, name),
        draw=_draw,
        draws_outside=False,
        refuses=partial(refuses, name),
    )
    for name in backends.REGISTRY
] + [
    GraphedProvider(
        "triton, CUDA graph",
        partial(loss, "triton"),
        draw=_draw,
        draws_outside=False,
        refuses=_refuses_graph,
        phases=False,
    )
]
