"""Best epoch of each stage: whether the stages were long enough."""

import statistics
from collections.abc import Sequence

from .summary import Runs, table

TITLE = "## Best epoch of each stage"


def epochs_section(runs: Runs, conditions: Sequence[str]) -> str:
    """Table of the best epochs, and in how many runs the last one was best."""
    first = runs.stages(conditions[0], runs.variants[0])[0]
    epochs = {stage["name"]: len(stage["validation"]) - 1 for stage in first}
    titles, rows = ["model"], [[variant] for variant in runs.variants]
    last = dict.fromkeys(epochs, 0)
    for number, (name, count) in enumerate(epochs.items()):
        for condition in conditions:
            titles.append(f"{words(name)} of {count}, {condition}")
            for row, variant in zip(rows, runs.variants, strict=True):
                best = [run[number]["best_epoch"] for run in runs.stages(condition, variant)]
                row.append(median_and_range(best))
                last[name] += best.count(count)
    total = len(conditions) * len(runs.variants) * len(runs.seeds)
    cut = [f"of the {words(name)} stage in {count}" for name, count in last.items()]
    return (
        f"{TITLE}\n\nMedian over the seeds, and range; 0 is the start of the stage, whose "
        "parameters are handed over where no epoch is better on the validation split.\n\n"
        f"{table(titles, rows)}\n\nOf {total} runs (two variants share a warm-up), the last epoch "
        f"was the best {', '.join(cut)}; training was cut short in those."
    )


def median_and_range(values: Sequence[int]) -> str:
    """Write as median (least to most)."""
    return f"{statistics.median(values):g} ({min(values)} to {max(values)})"


def words(name: str) -> str:
    """Name of a stage as the paper has it: warm-up, end-to-end, tuning."""
    return name.replace("_", "-")
