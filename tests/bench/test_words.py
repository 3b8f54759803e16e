"""Ratios in words: of the right size, in the right direction, and never "1.0 x"."""

import pytest

from bench import words
from bench.goals import Target, amount, faster_than, share_of_speed, time_beside


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (0.117, "8.5 x faster"),
        (1 / 3.02, "3.0 x faster"),
        (1.2, "1.2 x slower"),
        (2541, "2,500 x slower"),
        (0.937, "6.7 % faster"),
        (1.004, "0.40 % slower"),
        (1.0004, "as fast"),
        (1.0, "as fast"),
    ],
)
def test_as_speeds(ratio, said):
    assert words.faster(ratio) == said


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (0.848, "15 % less time"),
        (1.18, "18 % more time"),
        (1.013, "1.3 % more time"),
        (1.99, "99 % more time"),
        (2.154, "2.2 x the time"),
        (0.9996, "as much time"),
    ],
)
def test_as_times(ratio, said):
    assert words.more_time(ratio) == said


@pytest.mark.parametrize(
    ("compared", "said"),
    [
        ("8.5 x faster", "8.5 x faster than eager"),
        ("as fast", "as fast as eager"),
        ("as much time", "as much time as eager"),
        ("2.2 x the time", "2.2 x the time of eager"),
        ("18 % more time", "18 % more time than eager"),
    ],
)
def test_of_whom(compared, said):
    assert words.than(compared, "eager") == said


def test_sizes():
    assert words.size(41726612) == "39.8 MiB"
    assert words.size(2541.67 * 2**20) == "2.48 GiB"


@pytest.mark.parametrize(
    ("said", "bound", "value", "line"),
    [
        (faster_than("eager"), 1 / 7, 0.117, ["at least 7 x faster", "8.5 x faster than eager"]),
        (faster_than("eager"), 1, 1.0004, ["not slower", "0.0400 % slower than eager"]),
        (time_beside("them"), 1.1, 1.103, ["at most 10 % more time", "10.3 % more time than them"]),
        (time_beside("them"), 1.1, 2.5, ["at most 10 % more time", "2.5 x the time of them"]),
        (share_of_speed("x"), 2, 2.01, ["at least 50 % of the speed", "49.8 % of the speed of x"]),
        (amount("MiB"), 64, 54.24, ["at most 64 MiB", "54 MiB"]),
        (amount("MiB"), 64, 64.3, ["at most 64 MiB", "64.3 MiB"]),
    ],
)  # fmt: skip
def test_a_miss_never_reads_as_the_goal(said, bound, value, line):
    target = Target("a step", bound, lambda records: iter(records), said)
    assert target.row([value]) == ["a step", *line, "yes" if value <= bound else "no"]
    assert target.row([]) is None
