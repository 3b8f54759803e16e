"""Interleaved rounds taken apart again, for pytest-benchmark's own tables and JSON.

pytest-benchmark has one statistic for a test; a test here times several providers in turn.
``extra_info["turns"]`` names whose turn each round was, in ``extra_info["seconds"]``.
"""

from __future__ import annotations

from typing import Any

from pytest_benchmark.stats import Stats

from bench.timing import Entry


def note_turns(benchmark: Any, entries: list[Entry], order: list[int]) -> None:
    """Keep with the benchmark what :func:`apart` needs."""
    if benchmark.stats is not None:  # None where benchmarks are disabled
        names = [f"{entry.provider} | {entry.case.name}" for entry in entries]
        benchmark.extra_info["turns"] = [names[index] for index in order]
        benchmark.extra_info["seconds"] = list(benchmark.stats.stats.data)


def apart(benchmark: dict, flat: bool = False) -> list[dict]:
    """One of pytest-benchmark's dictionaries for each provider and case."""
    info = {k: v for k, v in benchmark["extra_info"].items() if k not in ("turns", "seconds")}
    turns, seconds = benchmark["extra_info"]["turns"], benchmark["extra_info"]["seconds"]
    found = []
    for name in dict.fromkeys(turns):
        stats = Stats()
        for turn, value in zip(turns, seconds, strict=True):
            if turn == name:
                stats.update(value)
        numbers = {**stats.as_dict(), "iterations": 1}
        one = {**benchmark, "name": name, "extra_info": info}
        one["fullname"] = f"{benchmark['fullname']} {name}"
        found.append(
            {**one, **numbers} if flat else {**one, "stats": {**numbers, "data": stats.data}}
        )
    return found
