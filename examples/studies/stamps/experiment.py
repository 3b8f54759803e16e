"""Tune every loss, then train it on 1 to 37 languages and test it on six others.

What is held fixed between numbers of languages is one of three things. *Steps*: as many stamps
in a batch, and as many batches. *Rows*: as many captions in a batch, so fewer stamps where each
has more captions. *Time*: as many steps as take the processor time of MFH with equal steps and
the same languages.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from examples.studies.protocol.journal import Journal
from examples.studies.protocol.runs import PRIMARY, Outcome, Run, Runner, by_split, repeated
from examples.studies.protocol.tuning import Effort, Grid, Tuning, tune

from .features import StampSet, metadata, read_features
from .rows import MFH, ROWS, Row
from .training import Schedule, evaluate, train

TEST = ("pt", "sv", "it", "uk", "nl", "ca")
VALIDATION = ("de", "ro", "cs", "bg")
# Near relatives of these, which would give them away: nothing is trained on them.
NEAR = (
    *("pt_BR", "gl", "ast", "an", "ca@valencia", "vec"),
    *("nb", "nn", "da", "af", "be", "sk"),
)
COUNTS = (1, 2, 4, 8, 16, 32)
FEW_COUNTS = (1, 4, 16)  # and all: where rows or time are held fixed
TUNED_AT = (4, 16)
SEEDS_APART = 1000
Held = Literal["steps", "rows", "time"]


@dataclass(frozen=True)
class Plan:
    """Size of the experiment."""

    stamps: int = 64
    steps: int = 100
    rows: int = 512
    draws: int = 5
    seeds: int = 3
    workers: int = 1


@dataclass(frozen=True)
class Setting:
    """What is trained, on how many languages, and how much of it."""

    row: Row
    languages: int
    held: Held
    schedule: Schedule


def training_languages(languages: Sequence[str]) -> list[str]:
    """Those that are neither tested nor validated on, nor near to one that is."""
    return [name for name in languages if name not in {*TEST, *VALIDATION, *NEAR}]


def drawn(languages: Sequence[str], draw: int, count: int) -> list[str]:
    """The first languages of the order of a draw."""
    pool = training_languages(languages)
    order = np.random.default_rng(draw).permutation(len(pool))
    return [pool[place] for place in order[:count]]


def tuned_at(languages: int) -> int:
    """The number of languages whose tuning serves this one."""
    return TUNED_AT[0] if languages <= TUNED_AT[0] else TUNED_AT[1]


def equal_steps(plan: Plan, row: Row, languages: int) -> Setting:
    """A setting with the plan's stamps in a batch and its steps."""
    return Setting(row, languages, "steps", Schedule(plan.stamps, plan.steps))


def equal_rows(plan: Plan, row: Row, languages: int) -> Setting:
    """A setting with the plan's captions in a batch, and its steps."""
    captions = 1 if row.one_pair else languages
    return Setting(row, languages, "rows", Schedule(max(plan.rows // captions, 2), plan.steps))


def equal_time(setting: Setting, seconds: float, reference: float) -> Setting:
    """A setting with equal steps, with as many steps as take the time of the reference."""
    steps = max(round(setting.schedule.steps * reference / seconds), 1)
    return replace(setting, held="time", schedule=replace(setting.schedule, steps=steps))


_worker: StampSet


def start(path: Path) -> None:
    """Read the features, in a worker."""
    global _worker
    _worker = read_features(path)


def execute(run: Run) -> tuple[dict[str, float], float]:
    """Train and measure, in a worker."""
    setting, point = run.setting, run.point
    languages = drawn(_worker.languages, run.split, setting.languages)
    seed = SEEDS_APART * run.split + run.seed  # at all languages, draws differ in nothing else
    encoder, seconds = train(
        setting.row, _worker, languages, setting.schedule, point.lr, point.temperature, seed
    )
    measured = TEST if run.on == "test" else VALIDATION
    return evaluate(encoder, _worker, measured), seconds


@dataclass
class Results:
    """Tuning and tested runs, by setting."""

    tuning: dict[Setting, Tuning]
    runs: dict[Setting, list[Outcome]]

    def summary(self) -> dict[str, Any]:
        """Everything, for a JSON file; metrics and seconds are by draw, then by seed."""
        return {
            "tuning": [
                {
                    **asdict(setting),
                    "chosen": asdict(tuning.best),
                    "trials": [{**asdict(point), PRIMARY: v} for point, v in tuning.trials.items()],
                }
                for setting, tuning in self.tuning.items()
            ],
            "results": [
                {
                    **asdict(setting),
                    "point": asdict(outcomes[0].run.point),
                    "metrics": {
                        name: rounded(by_split(outcomes, name)) for name in outcomes[0].metrics
                    },
                    "seconds": median(outcome.seconds for outcome in outcomes),
                }
                for setting, outcomes in self.runs.items()
            ],
        }


def rounded(values: list[list[float]]) -> list[list[float]]:
    """Percents to three digits after the point."""
    return [[round(value, 3) for value in draw] for draw in values]


def counts(languages: Sequence[str], few: bool = False) -> list[int]:
    """Numbers of training languages, the last of which is all."""
    whole = len(training_languages(languages))
    return [count for count in (FEW_COUNTS if few else COUNTS) if count < whole] + [whole]


def run_all(path: Path, plan: Plan, grid: Grid) -> Results:
    """The whole experiment on the features of a file.

    Finished runs are kept beside the file, and one that was interrupted goes on from them.
    """
    languages = read_features(path).languages
    journal = Journal(path.with_suffix(".runs.jsonl"), {"features": metadata(path)})
    with Runner(execute, journal, plan.workers, start, (path,)) as runner:
        tuned = [equal_steps(plan, row, count) for row in ROWS for count in TUNED_AT]
        tuning = tune(runner, tuned, grid, Effort(min(plan.draws, 2), plan.seeds))

        def test(settings: Sequence[Setting], title: str) -> dict[Setting, list[Outcome]]:
            runs = {setting: repeats(plan, setting, tuning) for setting in settings}
            # Draw after draw, so that what the machine does meanwhile hits all settings.
            order = sorted(chain(*runs.values()), key=lambda run: (run.split, run.seed))
            done = {outcome.run: outcome for outcome in runner.outcomes(order, title)}
            return {setting: [done[run] for run in wanted] for setting, wanted in runs.items()}

        steps = [equal_steps(plan, row, count) for row in ROWS for count in counts(languages)]
        found = test(steps, "equal steps")
        times = [
            equal_time(
                equal_steps(plan, row, count),
                spent(found[equal_steps(plan, row, count)]),
                spent(found[equal_steps(plan, MFH, count)]),
            )
            for row in ROWS
            for count in counts(languages, True)
        ]
        found |= test(times, "equal time")
        rows = [equal_rows(plan, row, count) for row in ROWS for count in counts(languages, True)]
        found |= test(rows, "equal rows")
    journal.finish()
    return Results(tuning, found)


def repeats(plan: Plan, setting: Setting, tuning: dict[Setting, Tuning]) -> list[Run]:
    """The tested runs of a setting, at the values that were chosen for its loss."""
    chosen = tuning[equal_steps(plan, setting.row, tuned_at(setting.languages))].best
    return repeated(setting, chosen, plan.draws, plan.seeds)


def spent(outcomes: Sequence[Outcome]) -> float:
    """Processor seconds of a run of a setting."""
    return median(outcome.seconds for outcome in outcomes)
