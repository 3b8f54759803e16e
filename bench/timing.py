"""Time all entries of a group interleaved: every repeat of one stands among the others'.

pytest-benchmark runs and times the steps, one round after the other; its setup hook picks the
entry whose turn it is. A machine that slows down for a while then slows all of them down, and
ratios of medians survive it. An entry is timed as often as its share of the budget allows.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from bench.batch import Batch
from bench.cases import Case
from bench.providers.provider import Step

PHASES = ("forward", "backward", "both")
MOST_REPEATS = 100
WARM_UPS, WARM_UP_SECONDS = 5, 0.5
AHEAD = 12_000_000  # clocks of the GPU, 6 to 8 ms, in which the host runs ahead
SMALL = 1 << 22  # M N of a batch whose calls take longer than its kernels


@dataclass
class Entry:
    """One provider on one case: what runs, and the seconds measured so far."""

    provider: str
    case: Case
    batch: Batch
    step: Step
    gate: dict | None = None
    phases: bool = True  # whether forward and backward can be told apart
    extra: dict = field(default_factory=dict)  # what else the record says
    seconds: dict[str, list[float]] = field(default_factory=lambda: {p: [] for p in PHASES})

    def ready(self) -> None:
        """What a step must not pay for: threads, gradients of the last step, work in flight."""
        threads = self.case.threads or DEFAULT_THREADS
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        self.batch.clear()
        if self.batch.x.is_cuda:
            torch.cuda.synchronize()

    @property
    def ahead(self) -> bool:
        """Whether a step is timed with work before it in the stream, as in a training step.

        The GPU is then never waited with for the host, whose calls take milliseconds; where a
        step is nothing but calls, a small batch's without a graph, these are what is timed.
        """
        return self.batch.x.is_cuda and (self.case.M * self.case.N > SMALL or not self.phases)

    def run(self) -> None:
        """One step, with the seconds of its phases noted."""
        if self.ahead:
            torch.cuda._sleep(AHEAD)
        watch: _CpuWatch | _CudaWatch = _CudaWatch() if self.batch.x.is_cuda else _CpuWatch()
        self.step(watch.mark)
        forward, backward = watch.finish()
        for phase, seconds in zip(PHASES, (forward, backward, forward + backward), strict=True):
            self.seconds[phase].append(seconds)

    def warm_up(self) -> float:
        """Run a few times more than the gate did; the least seconds, of which none are kept."""
        spent: list[float] = []
        while len(spent) < WARM_UPS and sum(spent) < WARM_UP_SECONDS:
            self.ready()
            self.run()
            spent.append([self.seconds[phase].pop() for phase in PHASES][-1])
        return min(spent)


DEFAULT_THREADS = torch.get_num_threads()


class _CpuWatch:
    """Wall-clock time at the start, between the phases and at the end."""

    def __init__(self) -> None:
        self.times = [perf_counter()]

    def mark(self) -> None:
        self.times.append(perf_counter())

    def finish(self) -> tuple[float, float]:
        self.mark()
        start, middle, end = self.times
        return middle - start, end - middle


class _CudaWatch:
    """Events in the stream: nothing waits between the phases."""

    def __init__(self) -> None:
        self.events: list[torch.cuda.Event] = []
        self.mark()

    def mark(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.events.append(event)

    def finish(self) -> tuple[float, float]:
        self.mark()
        start, middle, end = self.events
        end.synchronize()
        return start.elapsed_time(middle) / 1e3, middle.elapsed_time(end) / 1e3


def schedule(seconds: list[float], budget: float, fewest: int) -> list[int]:
    """Indices in the order they run: each spread evenly over the whole, the cheap ones oftener."""
    share = budget / len(seconds)
    turns = []
    for index, step in enumerate(seconds):
        repeats = int(min(max(share / step, fewest), MOST_REPEATS))
        turns += [((turn + 0.5) / repeats, index) for turn in range(repeats)]
    return [index for _, index in sorted(turns)]


def interleave(entries: list[Entry], budget: float, fewest: int) -> None:
    """Warm up and time all ``entries``, interleaved, without pytest."""
    for index in schedule([entry.warm_up() for entry in entries], budget, fewest):
        entries[index].ready()
        entries[index].run()


def measure(entries: list[Entry], benchmark: Any, budget: float, fewest: int) -> list[int]:
    """Time all ``entries``, interleaved; ``benchmark`` is pytest-benchmark's fixture.

    Returns:
        The index of the entry whose turn each round was.
    """
    order = schedule([entry.warm_up() for entry in entries], budget, fewest)
    turns = iter(order)

    def setup() -> tuple[tuple[Entry], dict]:
        entry = entries[next(turns)]
        entry.ready()
        return (entry,), {}

    gc.collect()
    gc.disable()
    try:
        benchmark.pedantic(Entry.run, setup=setup, rounds=len(order), iterations=1)
    finally:
        gc.enable()
    return order


def summary(samples: list[float]) -> dict:
    """Median and 0.1 and 0.9 quantiles of some seconds."""
    quantiles = torch.tensor(samples, dtype=torch.float64).quantile(
        torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    )
    low, median, high = quantiles.tolist()
    return {"median": median, "q10": low, "q90": high}


def ratios(medians: dict[str, float], others: Iterable[dict[str, float]]) -> dict[str, float]:
    """This entry's medians over those of the other one, if there is another one."""
    for other in others:
        return {phase: medians[phase] / other[phase] for phase in PHASES if other[phase]}
    return {}
