"""A choice that is no launch setting: the chunks of dS, interleaved with the package's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from unittest.mock import patch

import torch

from bench.gpu.phases import Run
from mxm_kernels.backends import load
from mxm_kernels.backends.triton import plan
from mxm_kernels.backends.triton.settings import Cell, Phase
from mxm_kernels.tuning.check import EVERYTHING
from mxm_kernels.tuning.race import one_after_the_other
from mxm_kernels.tuning.workload import Workload, timed

REPEATS = 5
SHAPES = {  # rows x columns of a chunk, at most
    False: (
        (8192, 16_384), (11_520, 11_520), (16_384, 16_384), (8192, 65_536), (16_384, 32_768),
        (32_768, 16_384), (32_768, 32_768),
    ),
    True: ((16, 128), (32, 128)),
}  # fmt: skip


def variants(run: Run) -> dict[str, dict[str, float]]:
    """Median milliseconds, by what is varied and how."""
    backend = load("triton")

    def batch(phase: Phase, teacher: bool, rows: int) -> Callable[[], object]:
        rows, D = (40, 16) if run.smoke else (rows, 768)
        w: Workload = timed(Cell(phase, torch.bfloat16, teacher, D, rows), run.device)
        return lambda: w.run(backend, EVERYTHING)

    found = {}
    if run.left > 5:
        step = batch("gradient", False, 65_536)
        calls = {"the package's": step}
        for shape in SHAPES[run.smoke]:
            calls[f"{shape[0]} x {shape[1]}"] = partial(_chunked, shape, step)
        found["chunks of dS, gradient of InfoNCE 64k"] = _times(calls, run.device)
    return found


def _chunked(shape: tuple[int, int], step: Callable[[], object]) -> None:
    def chunk_shape(rows: int, cols: int, *_: int) -> tuple[int, int]:
        return min(rows, shape[0]), min(cols, shape[1])

    with patch.object(plan, "chunk_shape", chunk_shape):
        step()


def _times(calls: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    one_after_the_other(calls.values(), device)  # warms up
    rounds = [one_after_the_other(calls.values(), device) for _ in range(REPEATS)]
    times = zip(calls, zip(*rounds, strict=True), strict=True)
    return {name: 1e3 * median(taken) for name, taken in times}
