"""How the studies are run and read."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from examples.errors import CheckpointError
from examples.studies.protocol.contrasts import contrast, holm
from examples.studies.protocol.journal import Journal
from examples.studies.protocol.runs import PRIMARY, Outcome, Point, Run, Runner, by_split, repeated
from examples.studies.protocol.tables import question_table
from examples.studies.protocol.tuning import Effort, Grid, Tuning, tune
from tests.support.damage import flip

GRID = Grid((1.0, 2.0, 4.0), (0.1, 0.2))


@dataclass(frozen=True)
class Hill:
    """A setting whose metric is highest at a point, and whose runs leave a line in a file."""

    lr: float
    temperature: float
    log: str = ""
    fails: bool = False


def climb(run):
    """Height of the hill at the run's point; a little more for later seeds and splits."""
    hill = run.setting
    if hill.fails:
        raise ValueError(f"cannot run {hill}")
    if hill.log:
        with Path(hill.log).open("a") as file:
            file.write(f"{run.point.lr} {run.point.temperature} {run.split} {run.seed} {run.on}\n")
    away = (
        np.log2(run.point.lr / hill.lr) ** 2
        + np.log2(run.point.temperature / hill.temperature) ** 2
    )
    return {PRIMARY: float(-away + run.split + 10 * run.seed)}, 0.5


def nothing():
    """Start of a worker."""


@pytest.fixture
def runner(tmp_path):
    with Runner(climb, Journal(tmp_path / "runs.jsonl", {}), 1, nothing, ()) as made:
        yield made


def test_standard_errors_are_those_of_overlapping_training_sets():
    first, second = [3.0, 5.0, 10.0, 4.0], [1.0, 4.0, 7.0, 4.0]
    got, plain = contrast(first, second), ttest_rel(first, second)
    assert got.mean == 1.5
    enlarged = np.sqrt((1 / 4 + 1 / 3) / (1 / 4))
    assert got.stderr == pytest.approx(1.5 / plain.statistic * enlarged)
    low, high = plain.confidence_interval()
    assert (got.low - 1.5, got.high - 1.5) == pytest.approx(
        (enlarged * (low - 1.5), enlarged * (high - 1.5))
    )
    assert got.verdict == "within noise"
    assert contrast([5.0, 5.1, 5.2], [1.0, 1.0, 1.0]).verdict == "higher"
    assert contrast([1.0, 1.0, 1.0], [5.0, 5.1, 5.2]).verdict == "lower"


def test_seeds_are_averaged_before_the_interval():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5, 3))
    found = contrast(first, second)
    averaged, plain = contrast(first.mean(1), second.mean(1)), contrast(first[:, 0], second[:, 0])
    assert found.stderr == pytest.approx(averaged.stderr)
    assert found.stderr != pytest.approx(plain.stderr, rel=0.05)


def test_p_is_below_the_level_where_the_interval_leaves_out_zero():
    rng = np.random.default_rng(1)
    for shift in np.linspace(0, 4, 40):
        found = contrast(rng.normal(size=5) + shift, np.zeros(5))
        assert (found.p < 0.05) == (found.verdict != "within noise")


def test_the_smallest_difference_is_seen_four_times_in_five():
    """Simulated with the plain error: as many splits as make the correction 2 / splits."""
    rng = np.random.default_rng(2)
    splits, spread = 5, 1.0
    error = spread * np.sqrt(1 / splits + 1 / (splits - 1))
    wanted = contrast(np.array([-1.0, -0.5, 0.0, 0.5, 1.0]), np.zeros(5))
    scale = wanted.smallest / wanted.stderr  # the difference in standard errors
    draws = rng.normal(size=(4000, splits)) * spread
    noise = rng.normal(size=(4000, 1)) * np.sqrt(error**2 - spread**2 / splits)
    seen = [
        contrast(d, np.zeros(splits)).verdict == "higher" for d in draws + noise + scale * error
    ]
    assert 0.7 < np.mean(seen) < 0.9


def test_one_split_has_no_interval():
    found = contrast([[1.0, 2.0]], [[0.0, 0.0]])
    assert found.mean == 1.5
    assert found.verdict == "within noise"
    assert np.isinf(found.smallest)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_a_difference_is_called_one_only_after_the_correction():
    clear = contrast([5.0, 5.1, 5.2, 5.3], np.ones(4))
    faint = contrast([0.15, 0.25, 0.3, 0.4], np.zeros(4))
    assert 0.025 < faint.p < 0.05
    alone = question_table([("faint", faint)])
    assert "| faint | +0.2" in alone
    assert "| higher |" in alone
    both = question_table([("clear", clear), ("faint", faint), ("faint", faint)])
    assert both.count("| higher |") == 1
    assert both.count("| no difference seen |") == 2
    assert "over these 3" in both


def test_tuning_finds_the_best_point_of_each_setting(runner):
    hills = [Hill(2.0, 0.1), Hill(1.0, 0.2)]
    found = tune(runner, hills, GRID)
    assert [found[hill].best for hill in hills] == [Point(2.0, 0.1), Point(1.0, 0.2)]
    assert all(len(found[hill].trials) >= 6 for hill in hills)
    assert not any(found[hill].at_edge for hill in hills)


def test_an_optimum_at_an_edge_widens_the_grid(runner):
    hill = Hill(16.0, 0.1)
    found = tune(runner, [hill], GRID)[hill]
    assert found.best == Point(16.0, 0.1)
    assert max(point.lr for point in found.trials) == 32.0
    assert not found.at_edge
    far = Hill(1000.0, 0.1)
    found = tune(runner, [far], GRID)[far]
    assert found.best == Point(32.0, 0.1)
    assert found.at_edge  # and the tables mark it


def test_every_point_is_run_once_and_the_best_are_repeated(runner, tmp_path):
    hill = Hill(2.0, 0.15, str(tmp_path / "log"))
    tuning = tune(runner, [hill], Grid((1.0, 2.0, 4.0), (0.1, 0.2, 0.4)), Effort(2, 3))[hill]
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert len({tuple(line) for line in lines}) == len(lines)
    assert {line[4] for line in lines} == {"validation"}
    full = [point for point, values in tuning.trials.items() if len(values) == 6]
    assert len(full) == 3 + len(tuning.trials) - 9
    assert len(tuning.seconds) == 9 + 6 * len(full)


def test_points_that_were_run_once_are_not_chosen():
    lucky, sure = Point(1.0, 0.1), Point(2.0, 0.1)
    assert Tuning({lucky: [9.0], sure: [3.0, 4.0]}).best == sure


def test_outcomes_are_in_the_order_of_the_runs(runner):
    runs = repeated(Hill(1.0, 0.1), Point(1.0, 0.1), splits=3, seeds=2)
    done = runner.outcomes([*runs, runs[1]], "testing")
    assert [outcome.run for outcome in done] == [*runs, runs[1]]
    assert by_split(done[:6]) == [[0.0, 10.0], [1.0, 11.0], [2.0, 12.0]]
    assert done[0] == Outcome(runs[0], {PRIMARY: 0.0}, 0.5)


def test_finished_runs_are_not_run_again(tmp_path, capsys):
    path, log = tmp_path / "runs.jsonl", tmp_path / "log"
    good, bad = Hill(1.0, 0.1, str(log)), Hill(1.0, 0.1, fails=True)
    runs = repeated(good, Point(1.0, 0.1), 2, 2)
    failing = [*runs, Run(bad, Point(1.0, 0.1), 0, 0, "test")]
    with (
        pytest.raises(ValueError, match="cannot run"),
        Runner(climb, Journal(path, {"seed": 1}), 1, nothing, ()) as made,
    ):
        made.outcomes(failing, "testing")
    whole = path.read_text().splitlines()
    assert len(whole) == len(log.read_text().splitlines()) == 4
    path.write_text("\n".join([*whole[:2], whole[2][:50]]))  # the third line was cut
    with Runner(climb, Journal(path, {"seed": 1}), 1, nothing, ()) as made:
        made.outcomes(runs, "testing")
    assert "going on from 2 finished runs" in capsys.readouterr().out
    assert len(log.read_text().splitlines()) == 6
    with Runner(climb, Journal(path, {"seed": 2}), 1, nothing, ()) as made:
        made.outcomes(runs, "testing")  # of another seed none is kept
    assert len(log.read_text().splitlines()) == 10
    made.journal.finish()
    assert not path.exists()


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.8])
def test_a_damaged_journal_is_refused(tmp_path, place):
    journal = Journal(tmp_path / "runs.jsonl", {})
    for run in repeated(Hill(1.0, 0.1), Point(1.0, 0.1), 2, 1):
        journal.add(run, {PRIMARY: 1.0}, 2.0)
    assert len(json.loads(journal.path.read_text().splitlines()[0])) > 1
    flip(journal.path, place)
    with pytest.raises(CheckpointError, match=r"runs.jsonl is not what was written .*; remove it"):
        Journal(journal.path, {})
