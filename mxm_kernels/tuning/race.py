"""Launches timed against each other, interleaved: a GPU that slows down slows all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from statistics import median
from time import perf_counter

import torch

from mxm_kernels.backends import load
from mxm_kernels.backends.interface import Needs
from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.settings import Launch
from mxm_kernels.tuning.workload import Workload

ROUNDS, HEATS = 12, 3  # after HEATS rounds only the KEPT fastest launches go on
KEPT = 8
KERNELS_ONLY = Needs(x=False, y=False, scale=True, bias=True)  # without the vendor's products


def race(
    w: Workload,
    launches: list[Launch],
    seconds: float,
    tick: Callable[[], None] = lambda: None,
) -> dict[Launch, float]:
    """Median seconds of the phase under each launch; after ``seconds`` the rounds end.

    The first launch, the table's own, is in every round. ``tick`` is called after each round. What
    the time does not reach is not in the result.
    """
    ends = perf_counter() + seconds
    running: list[Launch] = []
    for one in launches:  # loads what was compiled, and warms up
        if running and perf_counter() > ends:
            break
        _run(w, one)
        running.append(one)
    times: dict[Launch, list[float]] = {one: [] for one in running}
    for heat in range(ROUNDS):
        calls = [partial(_run, w, one) for one in running]
        seconds_of = one_after_the_other(calls, w.problem.x.device)
        for one, taken in zip(running, seconds_of, strict=True):
            times[one].append(taken)
        tick()
        if perf_counter() > ends:
            break
        if heat + 1 == HEATS:
            ranked = sorted(running, key=lambda one: median(times[one]))[:KEPT]
            running = [one for one in running if one in ranked or one == launches[0]]
    return {one: median(taken) for one, taken in times.items()}


def _run(w: Workload, one: Launch) -> None:
    with launch.forced(w.cell.phase, one):
        w.run(load("triton"), KERNELS_ONLY)


def one_after_the_other(calls: Iterable[Callable[[], object]], device: torch.device) -> list[float]:
    """Seconds of every call, by events in the stream; by the clock on a CPU."""
    if device.type == "cpu":
        taken = []
        for call in calls:
            began = perf_counter()
            call()
            taken.append(perf_counter() - began)
        return taken
    marks = []
    for call in calls:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in marks]
