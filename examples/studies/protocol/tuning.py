"""Learning rate and temperature of every setting, chosen on validation data.

All settings have one grid. Each of its points is run once; the best of them are run on every
tuning split with every seed, and the best mean is taken. Where it lies at an edge of the grid, the
grid is widened there, point by point, until the best is inside or a limit is met.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from .runs import PRIMARY, Point, Runner, repeated

KEPT = 3  # points of a grid that are run on every split and seed
WIDENED = 3  # points at most that an axis grows by


@dataclass(frozen=True)
class Grid:
    """Values of both axes, in increasing order, each a constant factor apart."""

    lrs: tuple[float, ...]
    temperatures: tuple[float, ...]

    def points(self) -> list[Point]:
        """Every combination."""
        return [Point(lr, temperature) for lr in self.lrs for temperature in self.temperatures]

    def describe(self) -> str:
        """The grid in a sentence's part."""
        rates, temperatures = (
            ", ".join(f"{v:g}" for v in axis) for axis in (self.lrs, self.temperatures)
        )
        return f"learning rate {rates}, temperature {temperatures}"


@dataclass(frozen=True)
class Effort:
    """How often each point that is not ruled out at once is run."""

    splits: int = 2
    seeds: int = 3


@dataclass
class Tuning:
    """What was tried for a setting: by point, the validation metric of its runs; their seconds."""

    trials: dict[Point, list[float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    @property
    def full(self) -> int:
        """Number of runs of the points that were not ruled out."""
        return max(map(len, self.trials.values()))

    @property
    def best(self) -> Point:
        """The point with the best mean, of those that were run often enough."""
        means = {p: fmean(v) for p, v in self.trials.items() if len(v) == self.full}
        return max(means, key=means.__getitem__)

    def next(self) -> list[Point]:
        """Points beside the best one where it is at an edge of what was tried."""
        found = []
        for axis in ("lr", "temperature"):
            tried = sorted({getattr(point, axis) for point in self.trials})
            here = getattr(self.best, axis)
            if len(tried) > 1 and here == tried[0]:
                found.append(replace(self.best, **{axis: round_off(here * here / tried[1])}))
            if len(tried) > 1 and here == tried[-1]:
                found.append(replace(self.best, **{axis: round_off(here * here / tried[-2])}))
        return found

    @property
    def at_edge(self) -> bool:
        """Whether a better point may lie beyond those that were tried."""
        return bool(self.next())


def round_off(value: float) -> float:
    """Two digits, so that a factor applied twice gives a number that can be read."""
    return float(f"{value:.2g}")


def tune(
    runner: Runner, settings: Sequence[Any], grid: Grid, effort: Effort | None = None
) -> dict[Any, Tuning]:
    """Choose a point for every setting."""
    effort = effort or Effort()
    found: dict[Any, Tuning] = {setting: Tuning() for setting in settings}

    def run(wanted: dict[Any, list[Point]], effort: Effort, title: str) -> None:
        runs = [
            run
            for setting, points in wanted.items()
            for point in points
            for run in repeated(setting, point, effort.splits, effort.seeds, "validation")
        ]
        trials: dict[tuple[Any, Point], list[float]] = {}
        for outcome in runner.outcomes(runs, title):
            made = outcome.run
            trials.setdefault((made.setting, made.point), []).append(outcome.metrics[PRIMARY])
            found[made.setting].seconds.append(outcome.seconds)
        for (setting, point), values in trials.items():
            found[setting].trials[point] = values

    run(dict.fromkeys(found, grid.points()), Effort(1, 1), "tuning, once")
    run({s: leaders(t, KEPT) for s, t in found.items()}, effort, "tuning")
    for _ in range(WIDENED):
        beyond = {s: t.next() for s, t in found.items() if t.at_edge}
        if not beyond:
            break
        run(beyond, effort, "tuning, wider")
    return found


def leaders(tuning: Tuning, count: int) -> list[Point]:
    """The points with the best means."""
    return sorted(tuning.trials, key=lambda p: -fmean(tuning.trials[p]))[:count]
