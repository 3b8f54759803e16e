import numpy as np
import pytest

from examples.studies.cma_clip.rows import numbers
from examples.studies.cma_clip.rows.numbers import DRAWS, draws, interval, rate, resampled
from examples.studies.cma_clip.rows.tuning import FIRST_RATES, LADDER, best, tuned, widened


def outcome(instances, pairs, correct):
    counted = {"correct": correct, "accepted": [2 * c for c in correct], "hits": correct}
    return {"instances": instances, "pairs": pairs, "tasks": {"t": counted}}


def test_rates_are_of_pairs_or_of_what_was_accepted():
    found = outcome([0, 1], [3, 1], [2, 1])
    assert rate(found, "t", "correct", None) == 75.0
    assert rate(found, "t", "hits", "accepted") == 50.0
    assert rate(outcome([0], [1], [0]), "t", "hits", "accepted") is None


def test_metrics_are_by_split_and_seed():
    runs = [
        [{"tests": {"all": outcome([0], [4], [c])}} for c in split] for split in ([1, 2], [3, 4])
    ]
    found = numbers.test(runs, "all", resampled(1))
    assert found["accuracy"]["t"] == [[25.0, 50.0], [75.0, 100.0]]
    assert found["pairs"] == [[4, 4], [4, 4]]
    assert found["interval"]["accuracy"] == [62.5, 62.5]  # one instance: nothing to resample


def test_instances_are_resampled_with_all_of_their_pairs():
    # 50 instances of 10 pairs each, all right or all wrong: as uncertain as 50 coins, not 500.
    right = [10 * (i % 2) for i in range(50)]
    splits = [[outcome(list(range(50)), [10] * 50, right)]]
    values = draws(splits, ["t"], "correct", resampled(50))
    assert values.shape == (DRAWS,)
    assert values.mean() == pytest.approx(50, abs=1)
    assert values.std() == pytest.approx(50 / 50**0.5, rel=0.1)


def test_an_instance_counts_by_its_pairs_and_as_often_as_it_is_drawn():
    splits = [[outcome([0, 1], [30, 10], [30, 0])]]
    weights = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    assert draws(splits, ["t"], "correct", weights).tolist() == [100.0, 0.0, 75.0]


def test_an_instance_is_drawn_for_all_splits_together():
    right = [10 * (i % 2) for i in range(50)]
    split = [outcome(list(range(50)), [10] * 50, right)]
    alone = draws([split], ["t"], "correct", resampled(50))
    twice = draws([split, split], ["t"], "correct", resampled(50))
    np.testing.assert_allclose(alone, twice)


def test_the_interval_is_the_middle_95_percent():
    assert interval(np.arange(1001.0)) == [25.0, 975.0]


def test_primary_differences_are_matched_and_adjusted(monkeypatch):
    wanted = [numbers.Difference("clean", "a", "b"), numbers.Difference("clean", "a", "c")]
    monkeypatch.setattr(numbers, "PRIMARY", wanted)
    monkeypatch.setattr(numbers, "CELLS", [("clean", row) for row in "abc"])
    # Splits differ by much, the rows of a split by little: matching takes the splits out.
    base = [2, 4, 6, 8]
    right = {"a": [3, 5, 7, 10], "b": base, "c": [3, 4, 8, 8]}
    runs = {("clean", row): [[made(n)] for n in counts] for row, counts in right.items()}
    found = numbers.primary(runs, numbers.cells(runs, 2), 2)
    assert [row["second"] for row in found] == ["b", "c"]
    assert found[0]["mean"] == pytest.approx(12.5)
    assert found[0]["low"] > 0 > found[1]["low"]
    assert found[0]["holm"] == pytest.approx(2 * found[0]["p"], rel=1e-3)
    assert found[1]["holm"] == pytest.approx(found[1]["p"], rel=1e-3)
    low, high = found[0]["over_instances"]
    assert 0 <= low < found[0]["mean"] < high <= 25  # all pairs of one emoji, or of the other


def made(right):
    """A run on two emoji of 5 pairs each, the first one's right pairs first."""
    return {
        "rate": 0.1,
        "epochs": 1,
        "best_epoch": 1,
        "seconds": 1.0,
        "tests": {"all": outcome([0, 1], [5, 5], [min(right, 5), max(right - 5, 0)])},
        "text_weights": {},
    }


def test_rates_widen_where_the_best_is_at_an_end():
    first = FIRST_RATES
    assert widened(first, first[1]) == first
    assert widened(first, first[0]) == (LADDER[1], *first)
    assert widened(first, first[-1]) == (*first, LADDER[6])
    assert widened(LADDER, LADDER[-1]) == LADDER


def test_tuning_takes_the_best_mean_of_the_splits():
    assert best({"0.1": [1.0, 4.0], "0.2": [3.0, 3.0]}) == 0.2
    asked = []

    def run(grids):
        asked.append(grids)
        for shift in (0, 1):
            yield {row: {f"{r:g}": shift - r for r in rates} for row, rates in grids.items()}

    trials = tuned(run)
    assert len(asked) == 3  # the smallest rate is the best: two steps down the ladder
    for row in trials.values():
        assert list(row) == [f"{r:g}" for r in LADDER[:6]]
        assert best(row) == LADDER[0]
