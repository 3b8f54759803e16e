"""A target: a bound on numbers of the records, and the words for the bound and the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bench import words
from bench.results_file import Record


class Said(NamedTuple):
    """How a bound is said, and a measured number with so many significant digits."""

    goal: Callable[[float], str]
    measured: Callable[[float, int], str]


def faster_than(other: str) -> Said:
    """Ratios of times, ours over another's, as speeds."""

    def goal(bound: float) -> str:
        return "not slower" if bound == 1 else f"at least {1 / bound:g} x faster"

    return Said(goal, lambda ratio, digits: words.than(words.faster(ratio, digits), other))


def time_beside(other: str) -> Said:
    """Ratios of times as differences in percent."""
    return Said(
        lambda bound: f"at most {100 * (bound - 1):g} % more time",
        lambda ratio, digits: words.than(words.more_time(ratio, digits), other),
    )


def share_of_speed(other: str) -> Said:
    """Ratios of times as the share of the other's speed that is reached."""
    return Said(
        lambda bound: f"at least {100 / bound:g} % of the speed",
        lambda ratio, digits: f"{words.number(100 / ratio, digits)} % of the speed of {other}",
    )


def amount(unit: str) -> Said:
    """Numbers with a unit."""
    return Said(
        lambda bound: f"at most {bound:g} {unit}",
        lambda value, digits: f"{words.number(value, digits)} {unit}",
    )


PROMISED = Said(
    lambda _: "at most what docs/performance.md promises",
    lambda ratio, digits: f"{words.number(100 * ratio, digits)} % of what is promised",
)


@dataclass(frozen=True)
class Target:
    """A bound on numbers that are found in the records; the worst of them counts."""

    what: str
    bound: float
    values: Callable[[list[Record]], Iterator[float]]
    said: Said

    def row(self, records: list[Record]) -> list[str] | None:
        """The line of the table; None where nothing was measured."""
        found = list(self.values(records))
        if not found:
            return None
        worst = max(found)
        # A third digit where two would read as the bound.
        digits = 3 if self.said.measured(worst, 2) == self.said.measured(self.bound, 2) else 2
        met = "yes" if worst <= self.bound else "no"
        return [self.what, self.said.goal(self.bound), self.said.measured(worst, digits), met]
