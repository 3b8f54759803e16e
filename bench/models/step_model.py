"""Seconds of a training step on sm_90, from counts, the compiled kernels and a GPU's rates.

A kernel's seconds are those of its slowest unit: from its tile, in a record of
bench/results/machine_code.json, and from ``bench/models/rates.py``. Where two programs share a
multiprocessor the units work side by side; a single program takes its exponentials after its
product. The products of the chunks are the vendor's, by their tiles and waves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from bench.models.chunk_costs import ChunkCosts, chunk_costs, tiles
from bench.models.rates import Rates
from mxm_kernels.backends.triton.chunks import LARGE_WORKSPACE_BYTES

# CUDA programming guide, throughput of arithmetic instructions, compute capability 9.0: results a
# clock and multiprocessor. Issue: 4 schedulers of 32 lanes.
EXPONENTIALS, SHUFFLES, ISSUE = 16, 32, 128
SHARED = 128  # bytes a clock and multiprocessor, CUDA programming guide: 32 banks of 4 bytes
BYTES = 2  # of a bf16 number
# Merge, positives, losses of the rows, rounding of the sums, launches: an assumption.
REST = 0.3e-3


@dataclass(frozen=True)
class Case:
    """A batch of the target table."""

    name: str
    rows: int
    cols: int
    depth: int
    teacher: bool

    @property
    def unit(self) -> float:
        """U, the operations of one product."""
        return 2.0 * self.rows * self.cols * self.depth

    @property
    def logits(self) -> int:
        """How many products make S, and T where there is a teacher."""
        return 1 + self.teacher

    @property
    def products(self) -> int:
        """All products of a step that computes S and T again in backward."""
        return 2 * self.logits + 2


CASES = (
    Case("MFH, teacher, 32,768 squared, D 768", 32768, 32768, 768, True),
    Case("MFH, teacher, 32,768 squared, D 1024", 32768, 32768, 1024, True),
    Case("InfoNCE, 65,536 squared, D 768", 65536, 65536, 768, False),
)


@dataclass(frozen=True)
class Kernel:
    """Seconds of every unit for all tiles of a kernel."""

    tile: str
    programs: int  # on a multiprocessor
    product: float
    units: dict[str, float]  # that the product waits for
    after: dict[str, float]  # that follow it

    @property
    def seconds(self) -> float:
        """The slowest unit, or the slowest of the product's and then of the rest's."""
        waiting = max(self.product, *self.units.values())
        following = max(self.after.values())
        return max(waiting, following) if self.programs > 1 else waiting + following

    @property
    def limit(self) -> str:
        """What decides."""
        before = {"product": self.product, **self.units}
        slowest, follows = (max(u, key=lambda name: u[name]) for u in (before, self.after))
        if self.programs > 1:
            return slowest if before[slowest] >= self.after[follows] else follows
        return f"{slowest}, then {follows}"


def kernel(record: dict[str, Any], case: Case, rates: Rates) -> Kernel:
    """A kernel on a batch, from its record of the compiler's output."""
    rows, cols = (int(n) for n in re.findall(r"\d+", record["tile"])[:2])
    length, entries = case.depth * case.logits, case.rows * case.cols
    # Of a product's factors in shared memory, wgmma reads 64 rows of x and all of its columns.
    (kind,) = record["matrix"]
    width = int(kind.split("x")[1])
    read_of_tile = (rows * (cols // width) + cols * (rows // 64)) * length * BYTES
    loaded = (rows + cols) * length * BYTES * entries / (rows * cols)
    shared = read_of_tile * entries / (rows * cols) + loaded
    clocks = rates.processors * rates.clock
    units = {"shared memory": shared / (SHARED * clocks), "L2": loaded / rates.l2_product}
    if record["kernel"] == "gradient":
        units["dS to memory"] = entries * BYTES / rates.copy
    return Kernel(
        record["tile"].split(",")[0],
        record["programs"],
        # No kernel of ours is taken to multiply faster than the vendor's at the same K.
        case.logits * case.unit / rates.product(case.depth),
        units,
        {
            "exponentials": record["exponentials_each"] * entries / (EXPONENTIALS * clocks),
            "instructions": record["instructions_each"] * entries / (ISSUE * clocks),
            "shuffles": record["shuffles_each"] * entries / (SHUFFLES * clocks),
        },
    )


def find(records: list[dict[str, Any]], name: str, teacher: bool) -> dict[str, Any]:
    """The record of the kernel that a bfloat16 step runs on sm_90."""
    wanted = {
        "target": "sm_90", "kernel": name, "dtype": "bf16", "teacher": teacher,
        "diagnostics": False, "float8": False,
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
    dS = case.rows * case.cols * BYTES / rates.copy
    dx, dy = (
        max(case.unit / rate, dS)
        for rate in rates.chunk(costs.height, costs.width, costs.dx_tiles, costs.dy_tiles)
    )
    return Gradient(costs, dx, dy, costs.added_bytes / rates.additions)


def floor(case: Case, rates: Rates) -> float:
    """The benchmark's floor: the products of the step alone, by the vendor, dS as one chunk."""
    rate_dx = rates.gradient(tiles(case.rows, case.depth), case.cols)
    rate_dy = rates.gradient(tiles(case.cols, case.depth), case.rows)
    again = 2 * case.logits * case.unit / rates.product(case.depth)
    return again + case.unit / rate_dx + case.unit / rate_dy


@dataclass(frozen=True)
class Step:
    """A whole step of a case."""

    case: Case
    statistics: Kernel
    dS: Kernel
    gradient: Gradient
    floor: float
    cubed: float  # seconds of all its products at the rate of the 8192-cubed product

    @property
    def seconds(self) -> float:
        """Statistics, dS, the gradient's products and additions, and the rest."""
        return self.statistics.seconds + self.dS.seconds + self.gradient.seconds + REST


def step(case: Case, records: list[dict[str, Any]], costs: ChunkCosts, rates: Rates) -> Step:
    """The step of ``case``, whose chunks of dS cost ``costs``."""
    statistics, dS = (
        kernel(find(records, name, case.teacher), case, rates)
        for name in ("statistics", "gradient")
    )
    cubed = case.products * case.unit / rates.cubed
    return Step(case, statistics, dS, gradient(case, costs, rates), floor(case, rates), cubed)


def chunks(case: Case) -> ChunkCosts:
    """The chunks on a card with 40 GB or more; results are added in a second pass."""
    return chunk_costs(case.rows, case.cols, case.depth, BYTES, LARGE_WORKSPACE_BYTES, False)
