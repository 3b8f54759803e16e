"""Time and memory of a step of MFH against the memory budget, on one device.

    python -m bench.studies.budget [--device cpu|cuda] [--rows N] [--seconds S] [--out FILE]

With a teacher, in float32 and bfloat16: 4,920 x 4,100 x 512 on a CPU, 32,768 x 32,768 x 768 on a
GPU. All budgets of a case are timed interleaved with its matrix products alone, each after its
gradients were held to float64: some minutes for each dtype on a CPU. FILE is a table in
Markdown; where it has the table of another device, that one stays.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench import floor, machine, words
from bench.batch import Batch
from bench.cases import LARGE, Case, pairs
from bench.gate import Gate
from bench.markdown import seconds, table
from bench.memory import peaks
from bench.providers import ours
from bench.providers.provider import Mark, Provider, Step
from bench.run import Refused, prepared
from bench.timing import PHASES, Entry, interleave, summary
from mxm_kernels import backends, get_memory_budget, memory_budget
from tests.support.memory import saved_bytes

MIB = 1 << 20
BUDGETS = {
    "cpu": [size * MIB for size in (0, 64, 128, 256, 512)],
    "cuda": [size * 1024 * MIB for size in (0, 1, 2, 4, 8, 16)],
}


@dataclass(frozen=True)
class Budgeted(Provider):
    """The package's loss, every step of it under one budget."""

    budget: int = 0

    def prepare(self, batch: Batch) -> Step:
        """The step for a batch, which sets the budget and puts the former one back."""
        run, kind = super().prepare(batch), batch.x.device.type

        def step(mark: Mark) -> Tensor:
            with memory_budget(self.budget, kind):  # type: ignore[arg-type]
                return run(mark)

        return step


class Row(NamedTuple):
    """What was found at one budget."""

    budget: int
    kept: int  # bytes from forward to backward
    peak: int  # bytes at most, over inputs and gradients
    times: dict[str, float]  # medians, by phase


def cases(device: torch.device, rows: int | None = None) -> list[Case]:
    """The batches, in both dtypes."""
    case = LARGE if device.type == "cpu" else pairs(32_768, 768)
    if rows is not None:
        case = pairs(rows, case.D)
    return [replace(case, dtype=dtype) for dtype in ("float32", "bfloat16")]


def provider(name: str, budget: int) -> Budgeted:
    """The backend of that name under a budget."""
    (found,) = (p for p in ours.PROVIDERS if p.name == name)
    return Budgeted(**{**vars(found), "name": _size(budget), "budget": budget})


def measure(
    case: Case, device: torch.device, budgets: list[int], budget_of_time: float
) -> tuple[list[Row], dict[str, float], dict[str, str]]:
    """A row for each budget, the medians of the products alone, and why a budget has no row."""
    batch, name = Batch.make(case, device), backends.choose(None, device, case.torch_dtype)
    gate, entries, refused = Gate(batch), {}, {}
    for budget in budgets:
        try:
            entries[budget] = prepared(provider(name, budget), gate, device)
        except Refused as reason:
            refused[_size(budget)] = str(reason)
    best, _ = floor.choose_floor(batch)
    products = Entry(floor.NAME, case, batch, best.step)
    interleave([*entries.values(), products], budget_of_time, 3)
    rows = [
        Row(budget, _kept(name, entry, budget), peaks(entry)["peak_bytes"], _medians(entry))
        for budget, entry in entries.items()
    ]
    return rows, _medians(products), refused


def _medians(entry: Entry) -> dict[str, float]:
    return {phase: summary(entry.seconds[phase])["median"] for phase in PHASES}


def _kept(name: str, entry: Entry, budget: int) -> int:
    """Bytes that forward keeps under a budget, beside its inputs."""
    batch = entry.batch
    teacher = [v for v in (batch.teacher_x, batch.teacher_y) if v is not None]
    with memory_budget(budget):
        return saved_bytes(lambda: ours.loss(name, batch), [*batch.leaves.values(), *teacher])


def _size(nbytes: int) -> str:
    return f"{nbytes / MIB:,.0f} MiB"


def page(case: Case, rows: list[Row], products: dict[str, float], refused: dict[str, str]) -> str:
    """The table of one case, and what is not in it."""
    first = rows[0].times["both"]
    cells = [
        [
            _size(row.budget),
            _size(row.kept),
            _size(row.peak),
            *(seconds(row.times[phase]) for phase in PHASES),
            words.more_time(row.times["both"] / products["both"]),
            "" if row is rows[0] else words.more_time(row.times["both"] / first),
        ]
        for row in rows
    ]
    heads = ["budget", "kept", "peak", "forward", "backward", "step"]
    heads += [f"beside its {case.products} products alone", f"beside {_size(rows[0].budget)}"]
    left_out = "".join(f"\n{size}: {reason}.\n" for size, reason in refused.items())
    return f"{case.name}:\n\n{table(heads, cells)}\n{left_out}"


def merged(text: str, device: torch.device, made: str) -> str:
    """The page with one device's part made anew; a part begins with its comment."""
    parts = dict(re.findall(r"<!-- (\w+) -->\n(.*?)(?=<!-- \w+ -->|\Z)", text, re.DOTALL))
    parts[device.type] = made
    return "\n".join(f"<!-- {kind} -->\n{parts[kind].strip()}\n" for kind in sorted(parts))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--rows", type=int, help="images and texts, one pair each")
    parser.add_argument("--seconds", type=float, default=90.0, help="of timing for each dtype")
    parser.add_argument("--out", type=Path, help="write the tables as Markdown")
    arguments = parser.parse_args()
    device, where = arguments.device, machine.describe(arguments.device)
    text = (
        f"{where['gpu'] or where['cpu']}, {torch.get_num_threads()} threads, commit "
        f"{where['commit'] or where['source']}, default {_size(get_memory_budget(device))}. "
        "Times are medians. Kept is what forward leaves for backward; peak is the most memory over "
        "inputs and gradients.\n"
    )
    for case in cases(device, arguments.rows):
        made = page(case, *measure(case, device, BUDGETS[device.type], arguments.seconds))
        print(made, flush=True)  # the next case takes minutes
        text += f"\n{made}"
    if arguments.out:
        old = arguments.out.read_text() if arguments.out.exists() else ""
        arguments.out.write_text(merged(old, device, text))


if __name__ == "__main__":
    main()
