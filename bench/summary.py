"""The few lines that a user asks for first: times, how much faster, and memory."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from bench import words
from bench.cases import LARGE, PAPER, Case, pairs
from bench.markdown import seconds
from bench.markdown import table as markdown
from bench.providers.dense import COMPILED, DENSE
from bench.results_file import Record

OURS = ("triton", "native")  # the first that was timed on the case
CLIP_LOSS = "open_clip ClipLoss"
_SMALL = Case(1680, 1400, 512)


class Line(NamedTuple):
    """A line of the table."""

    text: str  # with the fields of the case
    case: Case


LINES = [
    Line("a large batch: {M:,} images, {N:,} texts, {dtype}", LARGE),
    Line("the same in {dtype}", replace(LARGE, dtype="bfloat16")),
    Line("the paper's batch: {M} images, {N} texts", PAPER),
    Line("{M:,} images, {N:,} texts, one random round", replace(_SMALL, rounds=1)),
    Line("the same with {rounds} rounds", replace(_SMALL, rounds=100)),
    Line("CLIP's loss: {M:,} images with one text each", pairs(2048, 512, teacher=False)),
]


def table(records: list[Record]) -> str:
    """The lines that were measured; empty where none was."""
    rows = [row for line in LINES if (row := _row(line, records)) is not None]
    if not rows:
        return ""
    head = ["one step of the loss", words.EAGER, words.COMPILE, "mxm_kernels"]
    head += ["against eager", "memory over the inputs (eager / ours)"]
    return _note(records) + markdown(head, rows)


def _row(line: Line, records: list[Record]) -> list[str] | None:
    # Of a case in several groups the first counts: its providers were timed together there.
    of_case = [r for r in records if r["case"]["name"] == line.case.name]
    found: dict[str, Record] = {}
    for record in of_case:
        if record["group"] == of_case[0]["group"]:
            found.setdefault(record["provider"], record)
    ours = next((found[name] for name in OURS if "seconds" in found.get(name, {})), None)
    if ours is None:
        return None
    eager = found.get(DENSE, {})
    clip = found.get(CLIP_LOSS, {})
    times = [_time(eager), _time(found.get(COMPILED, {})), _time(ours)]
    beside = words.faster(ours["to_dense"]["both"]) if ours["to_dense"] else "-"
    if "seconds" in clip:
        times[0] += f"; open_clip's ClipLoss {_time(clip)}"
        ratio = ours["seconds"]["both"]["median"] / clip["seconds"]["both"]["median"]
        beside += f"; {words.faster(ratio)} than ClipLoss"
    peaks = " / ".join(_peak(r) for r in (eager, ours))
    return [line.text.format(**line.case.as_dict()), *times, beside, peaks]


def _time(record: Record) -> str:
    return seconds(record["seconds"]["both"]["median"]) if "seconds" in record else "-"


def _peak(record: Record) -> str:
    return words.size(record["peak_bytes"]) if "peak_bytes" in record else "-"


def _note(records: list[Record]) -> str:
    machine = records[0]["machine"]
    level = machine.get("cpu_capability")
    cpu = f"{machine['cpu']}{f' ({level})' if level else ''}, {machine['cores']} cores"
    where = machine["gpu"] or cpu
    return (
        f"{where}, torch {machine['versions']['torch']}, {machine['date']}. A step is forward and "
        f"backward of the loss on features of {LARGE.D} numbers, in float32 where no dtype is "
        "named, with 10 random rounds and a momentum teacher where nothing else is said. Times are "
        "medians of repeats that took turns in one run. Memory is the most that torch's allocator "
        "gave out, without inputs and gradients. A dash: not measured.\n\n"
    )
