"""Means over the seeds, paired differences, and whether these are larger than chance."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student_t

PM = "\N{PLUS-MINUS SIGN}"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """Mean over the seeds, and its standard error (0 for one seed)."""

    value: float
    error: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Mean of one number for each seed."""
        several = len(values) > 1
        error = statistics.stdev(values) / len(values) ** 0.5 if several else 0.0
        return cls(statistics.fmean(values), error, len(values))

    @property
    def outside_noise(self) -> bool:
        """Whether Student's 95 % interval around the mean excludes zero."""
        if self.seeds < 2:
            return False
        quantile = student_t.ppf((1 + CONFIDENCE) / 2, self.seeds - 1)
        return abs(self.value) > float(quantile) * self.error

    def plain(self, digits: int = 1) -> str:
        """Write as mean ± error, or as the value of one seed, which has no error."""
        return f"{self.value:.{digits}f}{self.spread(digits)}"

    def signed(self, digits: int = 1) -> str:
        """Write a difference; a star marks one whose interval excludes zero."""
        star = "*" if self.outside_noise else ""
        return f"{self.value:+.{digits}f}{self.spread(digits)}{star}"

    def spread(self, digits: int) -> str:
        """Write the error; empty for one seed."""
        return f" {PM} {self.error:.{digits}f}" if self.seeds > 1 else ""


class Runs:
    """The runs of a study's report.

    Args:
        report: what study.py writes.

    """

    def __init__(self, report: dict[str, Any]) -> None:
        self.runs, self.seeds = report["runs"], report["seeds"]
        self.variants = list(self.runs[0]["variants"])
        self.tasks = list(report["classes"])

    def of(self, condition: str, variant: str) -> list[dict[str, Any]]:
        """All of a variant in a condition, by seed."""
        by_seed = {
            r["seed"]: r["variants"][variant] for r in self.runs if r["condition"] == condition
        }
        return [by_seed[seed] for seed in self.seeds]

    def summaries(self, condition: str, variant: str) -> list[dict[str, Any]]:
        """Test numbers of a variant in a condition, by seed: with noise where there was noise."""
        return [run["test"][condition] for run in self.of(condition, variant)]

    def stages(self, condition: str, variant: str) -> list[list[dict[str, Any]]]:
        """Stages of a variant in a condition, by seed."""
        return [run["stages"] for run in self.of(condition, variant)]

    def values(self, condition: str, variant: str, metric: str, task: str) -> list[float]:
        """One metric by seed; the task "average" is the mean over the tasks."""
        rows = [summary[metric] for summary in self.summaries(condition, variant)]
        if task == "average":
            return [statistics.fmean(row.values()) for row in rows]
        return [row[task] for row in rows]

    def difference(self, condition: str, variants: tuple[str, str], metric: str, task: str) -> Mean:
        """Paired difference, first minus second."""
        first, second = (self.values(condition, v, metric, task) for v in variants)
        return Mean.of([a - b for a, b in zip(first, second, strict=True)])

    def text_weights(self, condition: str, variant: str, task: str, kind: str) -> list[float]:
        """Mean weight of the text by seed; kind is "right" or "noise"."""
        rows = self.summaries(condition, variant)
        return [row["text_weight"][task][kind]["mean"] for row in rows]

    def text_weight_histogram(
        self, condition: str, variant: str, task: str, kind: str
    ) -> list[float]:
        """Share of the test pairs of all seeds in each bin of the text's weight."""
        rows = [
            row["text_weight"][task][kind]["histogram"]
            for row in self.summaries(condition, variant)
        ]
        counts = [sum(column) for column in zip(*rows, strict=True)]
        return [count / sum(counts) for count in counts]


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Markdown table."""
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
