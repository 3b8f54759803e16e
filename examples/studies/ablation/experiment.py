"""Run a study: split the instances, tune its settings, train and test each of them.

One tenth of the instances, drawn once, is for validation and in no training or test set. The rest
is dealt into as many test sets as there are splits; a split trains on the others. Tuning trains on
the first two splits and measures on the validation instances. Then every setting is trained with
every seed of every split and measured on its test set, which is always whole.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.errors import OptionError
from examples.studies.protocol.journal import Journal
from examples.studies.protocol.runs import Outcome, Point, Run, Runner, repeated
from examples.studies.protocol.tuning import KEPT, Effort, Grid, Tuning, tune

from .features import FeatureSet, metadata, read_features
from .settings import Setting, Size
from .training import evaluate, train

GRID = Grid((2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3), (0.03, 0.06, 0.12))


@dataclass(frozen=True)
class Plan:
    """Size of the experiment."""

    epochs: int = 20
    batch_size: int = 128
    splits: int = 5
    seeds: int = 3
    seed: int = 0
    width: int = 128
    workers: int = 2
    grid: Grid = field(default_factory=lambda: GRID)
    effort: Effort = field(default_factory=Effort)

    def tuning(self) -> str:
        """How learning rates and temperatures are chosen, in a sentence."""
        return (
            f"Learning rates and temperatures at the start are chosen on one grid "
            f"({self.grid.describe()}), on validation instances that are in no test set: every "
            f"point once, the best {KEPT} on {self.effort.splits} splits with "
            f"{self.effort.seeds} seeds each, and on beyond an edge of the grid where the best "
            f"lies there."
        )


@dataclass(frozen=True)
class Cell:
    """A place in a study's tables and plot, and the runs that belong there.

    Args:
        setting: what is run.
        point: learning rate and temperature.
        at_edge: whether a better point may lie beyond those that were tried.
        panel: of the plot.
        curve: line of the panel, or row of the table.
        x: place on the line.

    """

    setting: Setting
    point: Point
    at_edge: bool = False
    panel: str = ""
    curve: str = ""
    x: float = 0.0


@dataclass
class Result:
    """A cell with its tested runs."""

    cell: Cell
    runs: list[Outcome]

    def summary(self) -> dict[str, Any]:
        """Everything, for a JSON file: metrics and seconds by split and seed."""
        metrics: dict[int, list[dict[str, float]]] = {}
        seconds: dict[int, list[float]] = {}
        for outcome in self.runs:
            kept = {name: round(value, 4) for name, value in outcome.metrics.items()}
            metrics.setdefault(outcome.run.split, []).append(kept)
            seconds.setdefault(outcome.run.split, []).append(round(outcome.seconds, 3))
        runs, times = list(metrics.values()), list(seconds.values())
        return {**asdict(self.cell), "runs": runs, "seconds": times}


class Lab:
    """What a study works with: the sizes of its data, tuning, and runs.

    Args:
        plan: size of the experiment.
        size: of the data.
        runner: of the runs.

    """

    def __init__(self, plan: Plan, size: Size, runner: Runner) -> None:
        self.plan, self.size, self.runner = plan, size, runner

    def tune(self, settings: Sequence[Setting], grid: Grid | None = None) -> dict[Setting, Tuning]:
        """Choose learning rate and temperature of every setting."""
        return tune(self.runner, settings, grid or self.plan.grid, self.plan.effort)

    def test(self, cells: Sequence[Cell]) -> list[Result]:
        """Train and test every cell; runs of a split and seed follow each other."""
        plan = self.plan
        runs = [repeated(c.setting, c.point, plan.splits, plan.seeds) for c in cells]
        # Row after row, so that what the machine does meanwhile hits all.
        order = [run for turn in zip(*runs, strict=True) for run in turn]
        found = {outcome.run: outcome for outcome in self.runner.outcomes(order, "testing")}
        return [Result(c, [found[r] for r in each]) for c, each in zip(cells, runs, strict=True)]


def lab(path: Path, plan: Plan) -> tuple[Lab, Journal]:
    """A study's means, on the features of a file, with the journal of its runs.

    Finished runs are kept beside the file, and a study that was interrupted goes on from them.
    """
    data = read_features(path)
    common = {"features": metadata(path), "seed": plan.seed, "width": plan.width}
    journal = Journal(path.with_suffix(".runs.jsonl"), common | {"splits": plan.splits})
    least = min(map(len, trains_of(data, plan)[1]))
    if plan.batch_size > least:
        raise OptionError(
            f"--batch_size: {plan.batch_size}, but a split trains on {least} instances"
        )
    size = Size(least, len(data.images) / data.instances, len(data.texts) / data.instances)
    return Lab(
        plan, size, Runner(run_job, journal, plan.workers, start_worker, (path, plan))
    ), journal


def deal(instances: Tensor, splits: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Validation ids, and the test ids of every split."""
    order = instances[torch.randperm(len(instances), generator=torch.Generator().manual_seed(seed))]
    validation = order[: max(len(order) // 10, 1)]
    return validation, list(order[len(validation) :].tensor_split(splits))


def trains_of(data: FeatureSet, plan: Plan) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Ids for validation; those that each split trains on; those that it tests."""
    instances = torch.cat([data.image_ids, data.text_ids]).unique()
    validation, tests = deal(instances, plan.splits, plan.seed)
    return validation, [torch.cat([t for t in tests if t is not test]) for test in tests], tests


_worker: dict[str, Any] = {}


def start_worker(path: Path, plan: Plan) -> None:
    """What a worker process keeps for all of its runs."""
    data = read_features(path)
    validation, trains, tests = trains_of(data, plan)
    _worker.update(
        plan=plan,
        validation=data.of(validation),
        trains=[data.of(ids) for ids in trains],
        tests=[data.of(ids) for ids in tests],
    )


def run_job(run: Run) -> tuple[dict[str, float], float]:
    """Train and measure, in a worker."""
    plan: Plan = _worker["plan"]
    seed = 1000 * (plan.seed + 1) + 100 * run.seed + run.split
    heads, seconds = train(run.setting, _worker["trains"][run.split], run.point, seed, plan.width)
    measured = _worker["validation"] if run.on == "validation" else _worker["tests"][run.split]
    return evaluate(run.setting.row, heads, measured), seconds
