"""Training runs of a study, in processes of one thread each."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from types import TracebackType
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

from .journal import Journal

PRIMARY = "average recall"  # the metric that tuning maximises and that rows are compared by


@dataclass(frozen=True)
class Point:
    """What is tuned: learning rate, and temperature at the start."""

    lr: float
    temperature: float


@dataclass(frozen=True)
class Run:
    """One training run and what it is measured on.

    Args:
        setting: what is trained and how much, a frozen dataclass of the study.
        point: learning rate and temperature.
        split: the split of the data, or the draw of it.
        seed: of the initial weights, the batches and every draw of the training.
        on: the part of the data that measures: that which chooses, or that which is reported.

    """

    setting: Any
    point: Point
    split: int
    seed: int
    on: Literal["validation", "test"]


@dataclass(frozen=True)
class Outcome:
    """Metrics of a run, and the processor seconds of its training."""

    run: Run
    metrics: dict[str, float]
    seconds: float


class Runner:
    """Runs in worker processes; finished ones are kept in a journal and not run again.

    Args:
        execute: trains and measures, in a worker: metrics and seconds of a run.
        journal: of finished runs.
        workers: runs at a time, one thread each.
        start: called in every worker first, to read the data.
        arguments: of `start`.

    """

    def __init__(
        self,
        execute: Callable[[Run], tuple[dict[str, float], float]],
        journal: Journal,
        workers: int,
        start: Callable[..., None],
        arguments: tuple[Any, ...],
    ) -> None:
        self.execute, self.journal = execute, journal
        self.pool = ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=_start, initargs=(start, arguments)
        )

    def __enter__(self) -> "Runner":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # On an error the queue is dropped; else all of it would run before the error is seen.
        self.pool.shutdown(cancel_futures=error is not None)

    def outcomes(self, runs: Sequence[Run], title: str) -> list[Outcome]:
        """Outcomes of the runs, in their order; equal runs are run once."""
        found: dict[Run, Outcome] = {}
        futures: dict[Future[tuple[dict[str, float], float]], Run] = {}
        with tqdm(total=len(set(runs)), desc=title, disable=not runs) as bar:
            try:
                for run in dict.fromkeys(runs):
                    kept = self.journal.find(run)
                    if kept is not None:
                        found[run] = Outcome(run, *kept)
                        bar.update()
                    else:
                        futures[self.pool.submit(self.execute, run)] = run
                for future in as_completed(futures):
                    run = futures[future]
                    found[run] = Outcome(run, *future.result())
                    self.journal.add(run, found[run].metrics, found[run].seconds)
                    bar.update()
            except BaseException:
                self.pool.shutdown(cancel_futures=True)
                raise
        return [found[run] for run in runs]


def repeated(
    setting: Any, point: Point, splits: int, seeds: int, on: Literal["validation", "test"] = "test"
) -> list[Run]:
    """The runs of a setting: every seed of every split, split by split."""
    return [
        Run(setting, point, split, seed, on) for split in range(splits) for seed in range(seeds)
    ]


def by_split(outcomes: Sequence[Outcome], metric: str = PRIMARY) -> list[list[float]]:
    """A metric of the runs of a setting: (splits, seeds)."""
    splits: dict[int, list[float]] = {}
    for outcome in outcomes:
        splits.setdefault(outcome.run.split, []).append(outcome.metrics[metric])
    return list(splits.values())


def _start(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    start(*arguments)
