"""Phases 3 and 5: the headline cases beside the floor, interleaved, and where our time goes.

The floor is the step's matrix products alone (``bench.floor``), in the same run, of a step that
keeps none: 6 with a teacher, 4 without, 3 for SigLIP's one pass. Where the ceilings were measured,
a line also has the share of the rate of an 8192-cubed product, counted at the same operations,
2 M N D each. A step whose budget keeps S and T makes 4 of these products, or 3.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import monotonic
from typing import Any

import torch

from bench import floor
from bench.batch import Batch
from bench.cases import PAPER, Case, pairs
from bench.gate import Gate
from bench.gpu import parts
from bench.gpu.phases import Run, WrongError
from bench.memory import peaks
from bench.providers import named
from bench.run import Refused, is_fault, prepared
from bench.timing import Entry, interleave
from mxm_kernels.backends import load
from mxm_kernels.backends.triton.settings import Cell, Phase
from mxm_kernels.memory import get_memory_budget, memory_budget
from mxm_kernels.tuning.check import EVERYTHING
from mxm_kernels.tuning.workload import timed

SECONDS, FEWEST = 1.5, 5  # of the timed repeats of a line
SMOKE_SECONDS, SMOKE_FEWEST = 0.05, 2
PART_REPEATS = 3
KEEPS = 16 << 30  # S and T of the largest


@dataclass(frozen=True)
class Line:
    """A headline case and who runs it."""

    name: str
    case: Case
    provider: str = "triton"
    parts: bool = False  # whether its kernels are long enough to be told apart
    budget: int | None = None  # bytes that S and T may be kept in; None: the default


def lines(smoke: bool) -> tuple[Line, ...]:
    """The most important first."""
    bf16: dict[str, Any] = {"dtype": "bfloat16"}
    graph = "triton, CUDA graph"
    if smoke:
        small = pairs(24, 16, **bf16)
        alone = replace(small, teacher=False)
        return (
            Line("MFH", small, parts=True),
            Line("InfoNCE", alone, parts=True),
            Line("SigLIP", replace(alone, sigmoid=True), parts=True),
            Line("paper", Case(12, 10, 16)),
            Line("paper, CUDA graph", Case(12, 10, 16), graph),
        )
    paper = replace(PAPER, **bf16)
    mfh, wide = pairs(32_768, 768, **bf16), pairs(32_768, 1024, **bf16)
    large = pairs(65_536, 768, teacher=False, **bf16)
    return (
        Line("MFH 32k", mfh, parts=True, budget=KEEPS),
        Line("InfoNCE 64k", large, parts=True, budget=KEEPS),
        Line("SigLIP 64k", replace(large, sigmoid=True), parts=True),
        Line("MFH 32k wide", wide, parts=True, budget=KEEPS),
        Line("paper, CUDA graph", paper, graph),
        Line("paper", paper),
        Line("paper float32", PAPER),
        Line("MFH 32k, default budget", mfh, parts=True),
        Line("InfoNCE 64k, default budget", large, parts=True),
        Line("MFH 32k wide, default budget", wide),
    )


def phase(run: Run) -> None:
    """Check, time and take apart every line, until the bound."""
    rate = run.other("ceilings.json").get("constants", {}).get("product_8192", {}).get("value")
    faults, found = [], {}
    every = lines(run.smoke)
    for index, line in enumerate(every):
        share = run.left / (len(every) - index)
        if share < 1.0 and not run.smoke:
            found[line.name] = {"refused": f"no time: {run.left:.0f} s were left"}
        else:
            with memory_budget(line.budget):
                found[line.name] = measure(line, run, rate, share)
        refused = found[line.name].get("refused", "")
        if is_fault(refused):
            faults.append(f"{line.name}: {refused}")
        run.keep({"lines": found})
        release(run.device)
    if faults:
        raise WrongError("; ".join(faults))


def release(device: torch.device) -> None:
    """Give back what the last batch held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure(line: Line, run: Run, rate: float | None, share: float) -> dict[str, Any]:
    """One line's record; an 8192-cubed product runs at ``rate`` operations a second."""
    began = monotonic()
    gate = Gate(Batch.make(line.case, run.device))
    try:
        ours = prepared(named(line.provider, line.case), gate, run.device)
    except Refused as reason:
        return {"case": line.case.name, "refused": str(reason)}
    products, _ = floor.choose_floor(gate.batch)
    entries = [ours, Entry(floor.NAME, line.case, gate.batch, products.step)]
    if run.smoke:
        interleave(entries, SMOKE_SECONDS, SMOKE_FEWEST)
    else:
        interleave(entries, min(SECONDS, 0.4 * share), FEWEST)
    mine, least = (_medians(entry) for entry in entries)
    record: dict[str, Any] = {
        "case": line.case.name,
        "budget": get_memory_budget(run.device),
        "milliseconds": {"ours": mine, "floor": least},
        "to_floor": mine["both"] / least["both"],
        "products": line.case.products,
        "block_height": products.height,
        "repeats": len(ours.seconds["both"]),
        "gate": ours.gate,
        **peaks(ours),
    }
    if rate is not None:
        record["share_of_product_8192"] = line.case.operations / (mine["both"] / 1e3) / rate
    if line.parts and monotonic() - began < share:
        del entries, ours, gate, products  # their memory is the parts' now
        record["parts_milliseconds"] = _parts(
            line.case, run.device, 1 if run.smoke else PART_REPEATS
        )
    return record


def _medians(entry: Entry) -> dict[str, float]:
    phases = ("forward", "backward", "both") if entry.phases else ("both",)
    return {phase: 1e3 * median(entry.seconds[phase]) for phase in phases}


def _parts(case: Case, device: torch.device, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each kernel and product, by phase."""
    backend = load("triton")
    found: dict[str, dict[str, float]] = {}
    for phase in _phases(case, device):
        workload = timed(Cell(phase, case.torch_dtype, case.teacher, case.D, case.M), device)
        run = partial(workload.run, backend, EVERYTHING)
        seconds = parts.measure(run, device, repeats)
        found[phase] = {name: 1e3 * value for name, value in seconds.items()}
    return found


def _phases(case: Case, device: torch.device) -> Iterator[Phase]:
    if case.sigmoid:
        yield "sigmoid_gradient"
        return
    yield "statistics"
    kept = 2 * (1 + case.teacher) * case.M * case.N
    yield "stored_gradient" if kept < get_memory_budget(device) else "gradient"
