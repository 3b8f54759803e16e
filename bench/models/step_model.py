"""Seconds of a training step on sm_90, from counts, the compiled kernels and a GPU's rates.

A kernel's seconds lie between two: where two programs on a multiprocessor hide their units in one
another, the slowest unit is all; where nothing is hidden, what follows the products comes after
them. Units are counted from a kernel's tile, in a record of bench/results/machine_code.json, and
timed by ``bench/models/rates.py``. The products of the chunks are the vendor's, by their tiles and
waves; chunks and what is kept are those that ``backends/triton/plan.py`` makes of the budget.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from bench.models.chunk_costs import ChunkCosts, chunk_costs, tiles
from bench.models.rates import Rates
from mxm_kernels.backends.interface import Memory, Problem
from mxm_kernels.backends.triton import plan
from mxm_kernels.memory import CUDA_MOST

# CUDA programming guide, throughput of arithmetic instructions, compute capability 9.0: results a
# clock and multiprocessor. Issue: 4 schedulers of 32 lanes.
EXPONENTIALS, SHUFFLES, ISSUE = 16, 32, 128
SHARED = 128  # bytes a clock and multiprocessor, CUDA programming guide: 32 banks of 4 bytes
BYTES = 2  # of a bf16 number, and of one that is kept
STATISTIC = 3 * 4  # bytes of a partial statistic of S, or of T
# Units, positives, losses of the rows, rounding of the sums, launches: an assumption.
REST = 0.3e-3
# A program that finds that its tile is another kernel's: 131,072 of them took 0.31 ms on an H200,
# of the kernels of f13b9da.
RETURN = 2.3e-9

KEEPS = 16 << 30  # bytes, the other budget of the table
DEFAULT = CUDA_MOST  # of a card with 64 GB or more


@dataclass(frozen=True)
class Case:
    """A batch of the target table, and the memory budget of its step."""

    name: str
    rows: int
    cols: int
    depth: int
    teacher: bool
    budget: int = DEFAULT
    sigmoid: bool = False
    headline: str = ""  # its line in the file of bench/gpu/headline.py

    @property
    def unit(self) -> float:
        """U, the operations of one product."""
        return 2.0 * self.entries * self.depth

    @property
    def entries(self) -> int:
        """Entries of S."""
        return self.rows * self.cols

    @property
    def logits(self) -> int:
        """How many products make S, and T where there is a teacher."""
        return 1 + self.teacher

    @property
    def recomputed(self) -> int:
        """All products of a step that computes S and T again in backward; the sigmoid's has one."""
        return (1 if self.sigmoid else 2 * self.logits) + 2

    @property
    def kept(self) -> bool:
        """Whether S and T fit in the budget."""
        return self.kept_bytes > 0

    @property
    def kept_bytes(self) -> int:
        """Bytes of S and T that forward keeps."""
        problem, memory = self._call()
        stride = plan.kept_stride(problem, memory)
        return 0 if stride is None else plan.kept_bytes(problem, stride)

    @property
    def products(self) -> int:
        """All products of the step."""
        return self.logits + 2 if self.kept else self.recomputed

    def _call(self) -> tuple[Problem, Memory]:
        """What the plan takes: sizes, no numbers."""
        meta: dict[str, Any] = {"dtype": torch.bfloat16, "device": "meta"}
        x, y = (torch.empty(n, self.depth, **meta) for n in (self.rows, self.cols))
        nothing = torch.empty(0, device="meta")
        teacher_x, teacher_y = (x, y) if self.teacher else (None, None)
        scales = nothing, nothing if self.teacher else None
        tables = (nothing,) * 6
        problem = Problem(x, y, teacher_x, teacher_y, *scales, *tables)
        return problem, Memory(self.budget, keep=not self.sigmoid)

    def chunks(self) -> ChunkCosts:
        """The chunks of dS, whose products are added in place."""
        workspace = min(self.budget - self.kept_bytes, plan.MOST_WORKSPACE)
        return chunk_costs(self.rows, self.cols, self.depth, BYTES, workspace, accumulates=True)


_MFH, _INFONCE = (32768, 32768), (65536, 65536)
CASES = (
    Case("MFH, 32,768 squared, D 768", *_MFH, 768, True, KEEPS, headline="MFH 32k"),
    Case("MFH, 32,768 squared, D 768", *_MFH, 768, True, headline="MFH 32k, default budget"),
    Case("MFH, 32,768 squared, D 1024", *_MFH, 1024, True, KEEPS, headline="MFH 32k wide"),
    Case(
        "MFH, 32,768 squared, D 1024", *_MFH, 1024, True, headline="MFH 32k wide, default budget"
    ),
    Case("InfoNCE, 65,536 squared, D 768", *_INFONCE, 768, False, KEEPS, headline="InfoNCE 64k"),
    Case(
        "InfoNCE, 65,536 squared, D 768", *_INFONCE, 768, False,
        headline="InfoNCE 64k, default budget",
    ),
    Case(
        "SigLIP, 65,536 squared, D 768", *_INFONCE, 768, False, sigmoid=True,
        headline="SigLIP 64k",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """Seconds of every unit for all tiles of a kernel."""

    tile: str
    programs: int  # on a multiprocessor
    units: dict[str, float]  # of the products, or of what is loaded instead
    after: dict[str, float]  # of what follows them

    @property
    def hidden(self) -> float:
        """The slowest unit."""
        return max(*self.units.values(), *self.after.values())

    @property
    def exposed(self) -> float:
        """The slowest unit of the products, and then the slowest of the rest."""
        return max(self.units.values()) + max(self.after.values())

    @property
    def limit(self) -> str:
        """What decides."""
        return ", then ".join(max(u, key=lambda name: u[name]) for u in (self.units, self.after))


def kernel(record: dict[str, Any], case: Case, rates: Rates) -> Kernel:
    """A kernel on a batch, from its record of the compiler's output."""
    rows, cols = (int(n) for n in re.findall(r"\d+", record["tile"])[:2])
    clocks = rates.processors * rates.clock
    after = {
        unit: record[f"{unit}_each"] * case.entries / (rate * clocks)
        for unit, rate in (
            ("exponentials", EXPONENTIALS), ("instructions", ISSUE), ("shuffles", SHUFFLES),
        )
    }  # fmt: skip
    if record["kernel"].startswith("stored"):
        moved = case.entries * BYTES * (case.logits + 1)
        units = {"memory": moved / rates.copy}
    else:
        units = _product(record, case, rates, rows, cols)
        if "statistics" in record["kernel"]:
            written = record["kept"] * case.logits * BYTES * case.entries + partial(record, case)
        else:
            written = case.entries * BYTES
        after["memory"] = written / rates.copy
    return Kernel(record["tile"].split(",")[0], record["programs"], units, after)


def _product(
    record: dict[str, Any], case: Case, rates: Rates, rows: int, cols: int
) -> dict[str, float]:
    """S, and T, of all tiles. None of ours multiplies faster than the vendor's at the same K."""
    length, area = case.depth * case.logits, rows * cols
    # Of a product's factors in shared memory, wgmma reads 64 rows of x and all of its columns.
    (kind,) = record["matrix"]
    width = int(kind.split("x")[1])
    read_of_tile = (rows * (cols // width) + cols * (rows // 64)) * length * BYTES
    loaded = (rows + cols) * length * BYTES * case.entries / area
    shared = read_of_tile * case.entries / area + loaded
    return {
        "product": case.logits * case.unit / rates.product(case.depth),
        "shared memory": shared / (SHARED * rates.processors * rates.clock),
        "L2": loaded / rates.l2_product,
    }


def partial(record: dict[str, Any], case: Case) -> float:
    """Bytes of the partial statistics of all tiles, by rows and by columns."""
    rows, cols = (int(n) for n in re.findall(r"\d+", record["tile"])[:2])
    return STATISTIC * case.logits * case.entries * (1 / rows + 1 / cols)


def find(records: list[dict[str, Any]], name: str, case: Case) -> dict[str, Any]:
    """The record of the kernel that a bfloat16 step runs on sm_90."""
    kept = case.kept or (name == "stored_gradient")
    wanted = {
        "target": "sm_90", "kernel": name, "dtype": "bf16", "teacher": case.teacher,
        "diagnostics": False, "kept": kept, "pointers": False, "neg_sum": False,
    }  # fmt: skip
    return next(r for r in records if wanted.items() <= r.items())


@dataclass(frozen=True)
class Gradient:
    """The vendor's two products of all chunks, and the additions of their results."""

    costs: ChunkCosts
    dx: float
    dy: float
    additions: float

    @property
    def seconds(self) -> float:
        """All of it, one after the other."""
        return self.dx + self.dy + self.additions


def gradient(case: Case, costs: ChunkCosts, rates: Rates) -> Gradient:
    """DX and dY in chunks. Either product reads dS once, which it does while it multiplies."""
    dS = case.entries * BYTES / rates.copy
    dx, dy = (
        max(case.unit / rate, dS)
        for rate in rates.chunk(costs.height, costs.width, costs.dx_tiles, costs.dy_tiles)
    )
    return Gradient(costs, dx, dy, costs.added_bytes / rates.additions)


def floor(case: Case, rates: Rates) -> float:
    """The benchmark's floor: products alone, S and T twice, by the vendor, dS as one chunk."""
    rate_dx = rates.gradient(tiles(case.rows, case.depth), case.cols)
    rate_dy = rates.gradient(tiles(case.cols, case.depth), case.rows)
    logits = (case.recomputed - 2) * case.unit / rates.product(case.depth)
    return logits + case.unit / rate_dx + case.unit / rate_dy


@dataclass(frozen=True)
class Step:
    """A whole step of a case."""

    case: Case
    statistics: Kernel | None  # of SigLIP's one pass there are none
    dS: Kernel
    gradient: Gradient
    rest: float  # the merge of the statistics, programs that return, REST
    floor: float
    cubed: float  # seconds of a recomputing step's products at the rate of the 8192-cubed product

    @property
    def kernels(self) -> list[tuple[str, Kernel]]:
        """The kernels of ours that are M x N large."""
        first = [] if self.statistics is None else [("statistics", self.statistics)]
        return [*first, ("dS", self.dS)]

    @property
    def hidden(self) -> float:
        """Seconds where kernels hide their units in one another."""
        return self._seconds([k.hidden for _, k in self.kernels])

    @property
    def exposed(self) -> float:
        """Seconds where they do not."""
        return self._seconds([k.exposed for _, k in self.kernels])

    def _seconds(self, kernels: list[float]) -> float:
        return sum(kernels) + self.gradient.seconds + self.rest


def step(case: Case, records: list[dict[str, Any]], rates: Rates) -> Step:
    """The step of ``case``."""
    rest, statistics = REST, None
    name = "sigmoid_gradient" if case.sigmoid else "gradient"
    if not case.sigmoid:
        record = find(records, "statistics", case)
        statistics = kernel(record, case, rates)
        rest += partial(record, case) / rates.copy
    if case.kept:
        rest += RETURN * _tiles(find(records, name, case), case)
        name = "stored_gradient"
    dS = kernel(find(records, name, case), case, rates)
    cubed = case.recomputed * case.unit / rates.cubed
    costs = gradient(case, case.chunks(), rates)
    return Step(case, statistics, dS, costs, rest, floor(case, rates), cubed)


def _tiles(record: dict[str, Any], case: Case) -> int:
    rows, cols = (int(n) for n in re.findall(r"\d+", record["tile"])[:2])
    return -(-case.rows // rows) * -(-case.cols // cols)
