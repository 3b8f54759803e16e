"""Seconds of one call, repeated alone on an idle machine: a median by events or by the clock.

``bench/timing.py`` interleaves whole steps of several providers. A constant of the machine has no
other provider to stand beside, so here one call is warmed up and repeated within a budget.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch

from mxm_kernels.tuning.race import one_after_the_other

WARM_UPS, FEWEST, MOST = 3, 5, 30
BUDGET = 0.12  # seconds of the repeats of one call


class Timed(NamedTuple):
    """The median of some repeats."""

    seconds: float
    repeats: int


def synchronize(device: torch.device) -> None:
    """Wait for the work in flight; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call by the host's clock, until the device is done."""
    synchronize(device)
    start = perf_counter()
    run()
    synchronize(device)
    return perf_counter() - start


def timed(run: Callable[[], object], device: torch.device, budget: float = BUDGET) -> Timed:
    """The median seconds of ``run``: events in the stream on a GPU, the host's clock on a CPU.

    Nothing waits between the repeats, so that the launches of one hide behind the one before.
    """
    first = min(once(run, device) for _ in range(WARM_UPS))
    repeats = int(min(max(budget / max(first, 1e-9), FEWEST), MOST))
    return Timed(median(one_after_the_other([run] * repeats, device)), repeats)
