"""The phases of a run: what each does, for how long at most, and which file it leaves.

A phase is a function (Run) that keeps its results as it goes. It runs in a process of its own,
forked from one that has imported everything and has not touched the GPU. So a phase that crashes or
hangs takes nothing along, and PyTorch is imported once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from bench.gpu import ceilings
from bench.gpu.results import Results


@dataclass(frozen=True)
class Run:
    """What a phase is given."""

    out: Path
    device: torch.device
    smoke: bool  # a rehearsal: everything is touched, on batches that take no time
    results: Results
    ends: float  # of ``monotonic``: then the phase is ended

    @property
    def left(self) -> float:
        """Seconds until then, less what it takes to write the results."""
        return self.ends - monotonic() - 1.0

    def keep(self, found: dict[str, Any]) -> None:
        """Write results."""
        self.results.keep(found)

    def other(self, file: str) -> dict[str, Any]:
        """What an earlier phase left in its file."""
        return Results(self.out / file).read()


class WrongError(Exception):
    """Something of this repository is wrong; the run ends red, after all its phases."""


@dataclass(frozen=True)
class Phase:
    """One line of the table."""

    name: str
    seconds: float  # at most
    rehearsed: float  # seconds at most of a rehearsal
    file: str
    run: Callable[[Run], None]


def _ceilings(run: Run) -> None:
    ceilings.measure(run.device, "smoke" if run.smoke else "full", run.keep)


def table() -> tuple[tuple[Phase, ...], tuple[Phase, ...]]:
    """The first part, 420 seconds in all, and the second, 150."""
    from bench.gpu import (
        compiling,
        headline,
        million,
        peers,
        right,
        sanitizer,
        sweep,
    )

    first = (
        Phase("ceilings", 20, 10, "ceilings.json", _ceilings),
        Phase("compile", 45, 35, "sweep.json", compiling.phase),
        Phase("right", 75, 45, "right.json", right.phase),
        Phase("headline", 60, 20, "headline.json", headline.phase),
        Phase("sweep", 100, 25, "sweep.json", sweep.phase),
        Phase("again", 50, 15, "again.json", headline.phase),
        Phase("peers", 45, 15, "peers.json", peers.phase),
        Phase("million", 25, 10, "peers.json", million.phase),
    )
    second = (
        Phase("memcheck", 90, 2, "right.json", sanitizer.memcheck),
        Phase("counters", 60, 2, "headline.json", sanitizer.counters),
    )
    return first, second
