"""Find the fastest right launch of every cell: compile, check, race."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import chain, zip_longest
from time import monotonic

import torch

from mxm_kernels.backends import load
from mxm_kernels.backends.triton import launch, tuned
from mxm_kernels.backends.triton.candidates import GROUPS, candidates
from mxm_kernels.backends.triton.settings import Cell, Launch
from mxm_kernels.environment.machine import cores
from mxm_kernels.tuning import check
from mxm_kernels.tuning.compile import LATE, Job, Outcome, compile_all
from mxm_kernels.tuning.race import race
from mxm_kernels.tuning.workload import timed

COMPILING = 0.5  # share of the time, at most
SPENT = 0.95  # of the time, once the last race is over
GROUPED = 3  # fastest launches of a cell that are raced in every group
Report = Callable[[str], None]


@dataclass
class Found:
    """The launch settings that were tried for a cell, and their times."""

    cell: Cell
    shipped: Launch  # the table's
    asked: int  # candidates
    right: list[Launch] = field(default_factory=list)  # compiled and checked, in the list's order
    faults: list[tuple[Launch, str]] = field(default_factory=list)
    # Median seconds of each race: of all launches, then of the fastest in every group. Times of one
    # race compare with each other only.
    races: list[dict[Launch, float]] = field(default_factory=list)

    @property
    def best(self) -> Launch | None:
        """The fastest of the last race; None where there was none."""
        return min(self.races[-1], key=self.races[-1].__getitem__) if self.races else None

    @property
    def milliseconds(self) -> tuple[float, float | None]:
        """Time of the best launch, and of the table's launch or None where it was wrong."""
        assert self.best is not None
        table = self.races[-1].get(self.shipped)
        return 1e3 * self.races[-1][self.best], None if table is None else 1e3 * table

    def entry(self, device: torch.device) -> tuned.Entry | None:
        """The entry of the file; None where nothing was raced."""
        if self.best is None:
            return None
        best, table = self.milliseconds
        measured = {
            "D": self.cell.D,
            "rows": self.cell.rows,
            "milliseconds": best,
            "milliseconds_of_table": table,
            "candidates": len(self.races[0]),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        }
        return tuned.Entry.here(launch.device_name(device), self.cell, self.best, measured)


def jobs(cells: list[Cell], device: torch.device) -> list[Job]:
    """The candidates of all cells, the most promising of each first."""
    on, shared = launch.target(device), launch.shared_bytes(device)
    lists = [[(cell, one) for one in candidates(cell, on, shared)] for cell in cells]
    return [job for job in chain.from_iterable(zip_longest(*lists)) if job is not None]


def workers() -> int:
    """Processes that compile side by side: each has its own share of the GPU's memory."""
    return min(cores(), 14)


def compiled(
    cells: list[Cell], device: torch.device, seconds: float, report: Report
) -> dict[Cell, Found]:
    """Every candidate that compiles and is right, in the order of the list."""
    asked = jobs(cells, device)
    on = launch.target(device)
    found = {
        cell: Found(cell, cell.shipped(on), sum(c == cell for c, _ in asked)) for cell in cells
    }
    outcomes: list[Outcome] = []

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        report(f"compiling {len(outcomes)}/{len(asked)}")

    compile_all(asked, device, workers(), seconds, done)
    place = {job: index for index, job in enumerate(asked)}
    for outcome in sorted(outcomes, key=lambda o: place[o.cell, o.launch]):
        of = found[outcome.cell]
        if outcome.fault is None:
            of.right.append(outcome.launch)
        elif outcome.fault != LATE:
            of.faults.append((outcome.launch, outcome.fault))
    return found


def raced(found: Found, device: torch.device, seconds: float, report: Report) -> None:
    """Check the launches on a sample of the cell's own size, and time those that are right.

    The table's launch comes first, and is what the others are compared with.
    """
    if not found.right:
        return
    ends, name = monotonic() + seconds, tuned.describe(tuned.key(found.cell))
    workload = timed(found.cell, device)
    sample = check.Sample(workload)

    def run(launches: list[Launch], seconds: float) -> None:
        right = []
        for one in launches:
            report(f"checking {name}")
            with launch.forced(found.cell.phase, one):
                fault = sample.wrong(workload.run(load("triton"), check.EVERYTHING))
            if fault is None:
                right.append(one)
            else:
                found.faults.append((one, fault))
            if right and monotonic() > ends:
                break
        if right:
            found.races.append(race(workload, right, seconds, lambda: report(f"timing {name}")))

    run(found.right, 0.6 * seconds)
    if found.races and found.cell.phase != "stored_statistics":
        times = found.races[0]
        fastest = [*sorted(times, key=times.__getitem__)[:GROUPED]]
        first = [found.shipped] if found.shipped in times else []
        grouped = [replace(one, group=group) for one in fastest for group in GROUPS]
        run(list(dict.fromkeys([*first, *fastest, *grouped])), 0.3 * seconds)


def tune(cells: list[Cell], device: torch.device, seconds: float, report: Report) -> list[Found]:
    """Compile, check and time the candidates of every cell in about ``seconds``."""
    began = monotonic()
    found = compiled(cells, device, COMPILING * seconds, report)
    for index, cell in enumerate(cells):
        left = SPENT * seconds - (monotonic() - began)
        raced(found[cell], device, max(1.0, left / (len(cells) - index)), report)
    return list(found.values())
