"""Tune every row on the validation instances, then train it on every split and test it.

One tenth of the instances, drawn once, is for validation and in no training or test set. The rest
is dealt into as many test sets as there are splits; a split trains on the others. Every row gets
the same number of tuning runs, at points of one quasi-random sequence, on the first split's
training set; the validation instances choose. Then it is trained once for each split.

Rows see the same instances in the same batches in the same number of steps. CLIP on pairs does so
too, and has two more controls: as many instances in a batch as give the other rows' number of
images and captions, and as many steps as take the time of "Hard (10) + Soft".
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.stats.qmc import Halton
from torch import Tensor
from tqdm.auto import tqdm

from examples.errors import OptionError

from .features import FeatureSet, metadata, read_features
from .journal import Journal
from .rows import Row
from .training import Hyperparameters, Schedule, evaluate, train

# Bounds of the search, which is uniform in the logarithm; of the decay, in that of 1 - decay.
BOUNDS = {
    "lr": (3e-4, 3e-3),
    "temperature": (0.03, 0.3),
    "soft_weight": (0.1, 0.7),
    "teacher_memory": (0.01, 0.1),
}
SELECTED_BY = "average recall"
EQUAL_TIME_TO = "Hard (10) + Soft"


@dataclass(frozen=True)
class Plan:
    """Size of the experiment."""

    epochs: int = 20
    batch_size: int = 128
    splits: int = 5
    trials: int = 6
    seed: int = 0
    width: int = 256
    workers: int = 2


@dataclass(frozen=True)
class Job:
    """One training run: a row on the training instances of a split, measured on others."""

    row: Row
    schedule: Schedule
    hyperparameters: Hyperparameters
    train: Tensor
    test: Tensor
    split: int


@dataclass
class Outcome:
    """Metrics of a run, and what it cost."""

    job: Job
    metrics: dict[str, float]
    seconds: float


@dataclass
class Result:
    """A row with its tuning runs and its tested runs, one for each split."""

    row: Row
    schedule: Schedule
    trials: list[Outcome]
    runs: list[Outcome]

    def summary(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        return {
            "row": asdict(self.row),
            "schedule": asdict(self.schedule),
            "hyperparameters": asdict(best(self.trials)),
            "trials": [
                {**asdict(t.job.hyperparameters), SELECTED_BY: t.metrics[SELECTED_BY]}
                for t in self.trials
            ],
            "runs": [r.metrics for r in self.runs],
            "seconds": [r.seconds for r in self.runs],
        }


def deal(instances: Tensor, splits: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Validation ids, and the test ids of every split."""
    order = instances[torch.randperm(len(instances), generator=torch.Generator().manual_seed(seed))]
    validation = order[: max(len(order) // 10, 1)]
    return validation, list(order[len(validation) :].tensor_split(splits))


def trial_points(count: int, seed: int) -> list[Hyperparameters]:
    """Points of a scrambled Halton sequence, the same for every row."""
    low, high = np.log(np.array(list(BOUNDS.values()))).T
    points = np.exp(low + (high - low) * Halton(len(BOUNDS), rng=seed).random(count))
    return [Hyperparameters(lr, t, share, 1 - memory) for lr, t, share, memory in points.tolist()]


def best(trials: Iterable[Outcome]) -> Hyperparameters:
    """Hyper-parameters of the best trial."""
    return max(trials, key=lambda t: t.metrics[SELECTED_BY]).job.hyperparameters


def run_all(rows: list[Row], path: Path, plan: Plan) -> list[Result]:
    """The whole experiment on the features of a file; results in the order of the rows.

    Finished runs are kept beside the file, and one that was interrupted goes on from them.
    """
    data = read_features(path)
    common = {"features": metadata(path), "seed": plan.seed, "width": plan.width}
    journal = Journal(path.with_suffix(".runs.jsonl"), common)
    instances = torch.cat([data.image_ids, data.text_ids]).unique()
    validation, tests = deal(instances, plan.splits, plan.seed)
    trains = [torch.cat([t for t in tests if t is not test]) for test in tests]
    least = min(map(len, trains))
    base = Schedule(plan.batch_size, plan.epochs * (least // plan.batch_size))
    if not base.steps:
        raise OptionError(
            f"--batch_size: {plan.batch_size}, but a split trains on {least} instances"
        )
    points = trial_points(plan.trials, plan.seed)
    context = get_context("spawn")
    with ProcessPoolExecutor(
        plan.workers, context, initializer=start_worker, initargs=(path, plan)
    ) as pool:

        def tune(todo: list[Row], schedule: Callable[[Row], Schedule]) -> list[list[Outcome]]:
            jobs = [
                Job(row, schedule(row), point, trains[0], validation, 0)
                for row in todo
                for point in points
            ]
            done = run_jobs(pool, jobs, "tuning", journal)
            return [done[i : i + plan.trials] for i in range(0, len(done), plan.trials)]

        first = [row for row in rows if row.pairs != "equal time"]
        trials = dict(
            zip(first, tune(first, lambda row: sized(row, base, data, least)), strict=True)
        )
        late = [row for row in rows if row.pairs == "equal time"]
        longer = replace(base, steps=round(base.steps * time_ratio(trials))) if late else base
        trials |= dict(zip(late, tune(late, lambda _: longer), strict=True))
        jobs = [
            Job(row, trials[row][0].job.schedule, best(trials[row]), trains[i], tests[i], i)
            for i in range(plan.splits)
            for row in rows  # row after row, so that what the machine does meanwhile hits all
        ]
        runs = run_jobs(pool, jobs, "testing", journal)
    journal.finish()
    return [
        Result(row, trials[row][0].job.schedule, trials[row], runs[i :: len(rows)])
        for i, row in enumerate(rows)
    ]


def sized(row: Row, base: Schedule, data: FeatureSet, most: int) -> Schedule:
    """Schedule of a row: that of all, or as many pairs as others have images and captions."""
    if row.pairs != "equal rows":
        return base
    observations = (len(data.images) + len(data.texts)) / data.instances
    return replace(base, batch_size=min(round(base.batch_size * observations / 2), most))


def time_ratio(trials: dict[Row, list[Outcome]]) -> float:
    """How many times as long the row of equal time trains as CLIP on as many pairs."""

    def seconds(wanted: Callable[[Row], bool]) -> float:
        (row,) = (row for row in trials if wanted(row))
        return median(trial.seconds for trial in trials[row])

    hard = seconds(lambda row: row.name == EQUAL_TIME_TO and not row.aggregate)
    return hard / seconds(lambda row: row.pairs == "equal instances")


_worker: dict[str, Any] = {}


def start_worker(path: Path, plan: Plan) -> None:
    """What a worker process keeps for all of its jobs; each has one thread."""
    torch.set_num_threads(1)
    _worker.update(data=read_features(path), plan=plan)


def run_job(job: Job) -> Outcome:
    """Train and measure, in a worker."""
    data, plan = _worker["data"], _worker["plan"]
    seed = 1000 * (plan.seed + 1) + job.split
    part = data.of(job.train)
    heads, seconds = train(job.row, part, job.schedule, job.hyperparameters, seed, plan.width)
    return Outcome(job, evaluate(job.row, heads, data.of(job.test)), seconds)


def run_jobs(
    pool: ProcessPoolExecutor, jobs: list[Job], title: str, journal: Journal
) -> list[Outcome]:
    """Outcomes of the jobs, in their order; those in the journal are not run again."""
    kept = {place: journal.find(job) for place, job in enumerate(jobs)}
    outcomes = {p: Outcome(jobs[p], *found) for p, found in kept.items() if found is not None}
    todo = [place for place in kept if place not in outcomes]
    futures = {pool.submit(run_job, jobs[place]): place for place in todo}
    with tqdm(total=len(jobs), initial=len(outcomes), desc=title, disable=not jobs) as bar:
        try:
            for future in as_completed(futures):
                outcome = future.result()
                outcomes[futures[future]] = outcome
                journal.add(outcome.job, outcome.metrics, outcome.seconds)
                bar.set_postfix_str(outcome.job.row.name)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else it runs them all before the error is seen
            raise
    return [outcomes[place] for place in range(len(jobs))]


def mean_rows(data: FeatureSet, schedule: Schedule, pairs: bool) -> tuple[float, float]:
    """Mean numbers of images and captions in a batch."""
    if pairs:
        return float(schedule.batch_size), float(schedule.batch_size)
    share = schedule.batch_size / data.instances
    return len(data.images) * share, len(data.texts) * share
