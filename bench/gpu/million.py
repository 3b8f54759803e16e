"""Phase 7: one step of InfoNCE on a million images and texts, checked on a sample of its rows."""

from __future__ import annotations

from bench.batch import Batch
from bench.cases import pairs
from bench.gate import WrongAnswerError
from bench.gpu.phases import Run, WrongError
from bench.studies import largest

SMOKE_ROWS = 150


def phase(run: Run) -> None:
    """A small step compiles, the large one is timed once."""
    rows, D = (SMOKE_ROWS, 16) if run.smoke else (largest.ROWS, largest.DIMENSION)
    options = {"teacher": False, "dtype": "bfloat16"}
    largest.step(Batch.make(pairs(min(rows, largest.WARM_UP), D, **options), run.device))
    batch = Batch.make(pairs(rows, D, **options), run.device)
    took = largest.step(batch)
    record = {
        "case": batch.case.name,
        "seconds": took.seconds,
        "peak_bytes": took.peak_bytes,
        "bytes_of_S": batch.case.M * batch.case.N * batch.x.element_size(),
    }
    run.keep({"million": record})
    try:
        errors = largest.check(batch)
    except WrongAnswerError as error:
        raise WrongError(f"{batch.case.name}: {error}") from error
    run.keep({"million": {**record, "errors": errors}})
