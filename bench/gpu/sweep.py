"""Phase 4: the candidates that compiled, timed at full size; then chunks, workspace and raster.

What wins goes into the file of measured settings (``tune.json``), which the next phase runs with.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import Any

from bench.gpu import cells
from bench.gpu.phases import Run
from bench.gpu.variants import variants
from mxm_kernels.backends.triton import launch, tuned
from mxm_kernels.tuning.tune import Found, raced

BEST = 5


def phase(run: Run) -> None:
    """Cell by cell; the best five of each, and the whole of the file of settings."""
    left = run.other("sweep.json").get("compile", {})
    every = cells.cells(run.smoke)
    swept, entries = {}, []
    seconds = 0.75 * run.left
    shutil.copy(tuned.write([]), run.out / "tune.json")
    for cell in every:
        name = cells.name(cell)
        shipped = cell.shipped(launch.target(run.device))
        found = cells.found(cell, shipped, left.get(name, {}))
        raced(found, run.device, seconds / len(every), print)
        swept[name] = record(found)
        run.keep({"sweep": swept})
        entry = found.entry(run.device)
        if entry is not None:
            entries.append(entry)
            shutil.copy(tuned.write(entries), run.out / "tune.json")
    run.keep({"variants": variants(run)})


def record(found: Found) -> dict[str, Any]:
    """Times of the best, and of the table's launch in the same race."""
    races = []
    for race in found.races:
        ranked = sorted(race, key=race.__getitem__)
        table = race.get(found.shipped)
        races.append(
            {
                "timed": len(race),
                "milliseconds_of_table": None if table is None else 1e3 * table,
                "best": [{**asdict(one), "milliseconds": 1e3 * race[one]} for one in ranked[:BEST]],
            }
        )
    return {"candidates": found.asked, "races": races, "wrong": cells.faults(found)}
