"""Numbers of the study from the counts of its runs: means, intervals and primary differences."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.studies.protocol.contrasts import contrast, holm

from .plan import CELLS, PRIMARY, Difference

Array = NDArray[np.float64]
DRAWS = 2000
BOOTSTRAP_SEED = 0
LEVEL = 95  # percent of the bootstrap's intervals
Runs = dict[tuple[str, str], list[list[dict[str, Any]]]]  # by cell: splits x seeds


def cells(runs: Runs, instances: int) -> list[dict[str, Any]]:
    """Numbers of every cell; `instances` is their number in the data set."""
    weights = resampled(instances)
    return [cell(condition, row, runs[condition, row], weights) for condition, row in CELLS]


def cell(condition: str, row: str, runs: list[list[dict[str, Any]]], weights: Array) -> dict:
    """Numbers of one cell."""
    flat = [run for split in runs for run in split]
    return {
        "condition": condition,
        "row": row,
        "rate": flat[0]["rate"],
        "epochs": flat[0]["epochs"],
        "best_epoch": [run["best_epoch"] for run in flat],
        "seconds": round(median(run["seconds"] for run in flat), 2),
        "tests": {name: test(runs, name, weights) for name in flat[0]["tests"]},
        "text_weights": {
            name: {
                task: round(fmean(run["text_weights"][name][task] for run in flat), 3)
                for task in tasks
            }
            for name, tasks in flat[0]["text_weights"].items()
        },
    }


def test(runs: list[list[dict[str, Any]]], name: str, weights: Array) -> dict[str, Any]:
    """Metrics by split and seed in percent, and intervals over the instances of their means."""
    outcomes = [[run["tests"][name] for run in split] for split in runs]
    tasks = list(outcomes[0][0]["tasks"])
    rates = {
        metric: {t: [[rate(o, t, *kinds) for o in s] for s in outcomes] for t in tasks}
        for metric, kinds in {
            "accuracy": ("correct", None),
            "recall": ("hits", None),
            "precision": ("hits", "accepted"),
        }.items()
    }
    return {
        "pairs": [[sum(o["pairs"]) for o in s] for s in outcomes],
        **rates,
        "interval": {
            metric: interval(draws(outcomes, tasks, kind, weights))
            for metric, kind in {"accuracy": "correct", "recall": "hits"}.items()
        },
    }


def rate(outcome: dict[str, Any], task: str, kind: str, of: str | None) -> float | None:
    """Sum of one count over another, or over the pairs, in percent; None of nothing."""
    counted = outcome["tasks"][task]
    whole = sum(outcome["pairs"] if of is None else counted[of])
    return round(100 * sum(counted[kind]) / whole, 3) if whole else None


def resampled(instances: int) -> Array:
    """How often each instance is drawn in each resample, (DRAWS, instances).

    An instance is in the test sets of several splits; it is drawn for all of them together.
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    even = np.full(instances, 1 / instances)
    return rng.multinomial(instances, even, size=DRAWS).astype(float)


def draws(outcomes: Sequence[Any], tasks: Sequence[str], kind: str, weights: Array) -> Array:
    """Mean over tasks and splits in every resample, in percent, (DRAWS,).

    The seeds of a split are added up first, so a resampled instance comes with all of its pairs
    under all seeds.
    """
    means = []
    for split in outcomes:
        pairs = weights @ dense(split, weights.shape[1], lambda o: o["pairs"])
        for task in tasks:
            right = dense(split, weights.shape[1], lambda o, t=task: o["tasks"][t][kind])
            means.append(100 * (weights @ right) / pairs)
    return np.mean(means, axis=0)


def dense(split: Sequence[Any], instances: int, of: Any) -> Array:
    """Counts of all seeds of a split by instance, (instances,)."""
    total = np.zeros(instances)
    for outcome in split:
        total[outcome["instances"]] += of(outcome)
    return total


def interval(values: Array) -> list[float]:
    """Middle 95 % of some resampled values."""
    tail = (100 - LEVEL) / 2
    return [round(float(end), 2) for end in np.percentile(values, [tail, 100 - tail])]


def average(found: dict[str, Any], metric: str = "accuracy") -> Array:
    """Mean over the tasks, (splits, seeds)."""
    return np.mean([np.array(v, dtype=float) for v in found[metric].values()], axis=0)


def primary(runs: Runs, numbers: Sequence[dict[str, Any]], instances: int) -> list[dict[str, Any]]:
    """The differences that the study was begun for, with Holm's p values."""
    weights = resampled(instances)
    by_cell = {(c["condition"], c["row"]): c for c in numbers}
    rows = []
    for wanted in PRIMARY:
        sides = [(wanted.condition, row) for row in (wanted.first, wanted.second)]
        values = [average(by_cell[side]["tests"][wanted.test]) for side in sides]
        resamples = [
            draws(
                [[r["tests"][wanted.test] for r in s] for s in runs[side]],
                tasks,
                "correct",
                weights,
            )
            for side in sides
            if (tasks := list(by_cell[side]["tests"][wanted.test]["accuracy"]))
        ]
        found = {k: round(float(v), 5) for k, v in asdict(contrast(*values)).items()}
        over_instances = interval(resamples[0] - resamples[1])
        rows.append({**asdict(wanted), **found, "over_instances": over_instances})
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["holm"] = round(adjusted, 5)
    return rows


def secondary(numbers: Sequence[dict[str, Any]], wanted: Difference) -> Any:
    """A difference beside the primary ones."""
    by_cell = {(c["condition"], c["row"]): c for c in numbers}
    first, second = (
        average(by_cell[wanted.condition, row]["tests"][wanted.test])
        for row in (wanted.first, wanted.second)
    )
    return contrast(first, second)
