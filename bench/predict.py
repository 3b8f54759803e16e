"""What an H100 could do at most, from operation and byte counts and the compiled kernels.

    python -m bench.predict [--out FILE]

Nothing here is measured. Clocks that a tile needs of every unit come from the launch settings,
bench/results/machine_code.json and the rates below; where two programs share a multiprocessor
the units work side by side and the slowest decides, with one program the exponentials wait for
the product. FILE is a table in Markdown; run it after ``make machine-code``.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.markdown import seconds, table

RESULTS = Path(__file__).parent / "results"

# H100 SXM data sheet: 132 multiprocessors, 989.4 TFLOP/s of dense bf16, 3.35 TB/s of HBM3. The
# clock is the one at which 4 matrix units of 512 multiply-adds each reach that rate.
PROCESSORS, PRODUCTS, RATE, MEMORY = 132, 2048, 989.4e12, 3.35e12
CLOCK = RATE / (2 * PROCESSORS * PRODUCTS)
# CUDA programming guide, throughput of arithmetic instructions, compute capability 9.0: results a
# clock and multiprocessor. Issue: 4 schedulers of 32 lanes.
EXPONENTIALS, SHUFFLES, ISSUE = 16, 32, 128
SHARED = 128  # bytes a clock and multiprocessor, CUDA programming guide: 32 banks of 4 bytes
# Bytes a clock from L2 to all multiprocessors. Documented for the A100 only (A100 white paper);
# that the H100 has no less is an assumption, and the prediction hangs on it.
L2 = 5120 / PROCESSORS
# What large products of the vendor's BLAS reach of RATE: an assumption; the benchmark measures it.
LIBRARY = 0.8
BYTES = 2  # of a bf16 number


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


CASES = (
    Case("MFH, teacher, 32,768 squared, D 768", 32768, 32768, 768, True),
    Case("MFH, teacher, 32,768 squared, D 1024", 32768, 32768, 1024, True),
    Case("InfoNCE, 65,536 squared, D 768", 65536, 65536, 768, False),
)


@dataclass(frozen=True)
class Tile:
    """Clocks of one multiprocessor for one tile of a kernel."""

    product: float
    units: dict[str, float]  # those that the product waits for, and itself
    after: dict[str, float]  # those that follow it
    programs: int

    @property
    def clocks(self) -> float:
        """The slowest unit, or the slowest of the product's and then of the rest's."""
        waiting, following = max(self.units.values()), max(self.after.values())
        return max(waiting, following) if self.programs > 1 else waiting + following

    @property
    def limit(self) -> str:
        """What decides."""
        slowest = max(self.units, key=lambda name: self.units[name])
        follows = max(self.after, key=lambda name: self.after[name])
        if self.programs > 1:
            return slowest if self.units[slowest] >= self.after[follows] else follows
        return f"{slowest}, then {follows}"


def tile(record: dict[str, Any], depth: int) -> Tile:
    """The clocks of a kernel's tile, from its record of the compiler's output."""
    rows, cols = (int(n) for n in re.findall(r"\d+", record["tile"])[:2])
    products = 1 + record["teacher"]
    length = depth * products
    # Of a product's factors in shared memory, wgmma reads 64 rows of x and all of its columns.
    (kind,) = record["matrix"]
    width = int(kind.split("x")[1])
    read = (rows * (cols // width) + cols * (rows // 64)) * length * BYTES
    loaded = (rows + cols) * length * BYTES
    elements = rows * cols
    product = elements * length / PRODUCTS
    return Tile(
        product,
        {"product": product, "shared memory": (read + loaded) / SHARED, "L2": loaded / L2},
        {
            "exponentials": record["exponentials_each"] * elements / EXPONENTIALS,
            "instructions": record["instructions_each"] * elements / ISSUE,
            "shuffles": record["shuffles_each"] * elements / SHUFFLES,
        },
        record["programs"],
    )


def _find(records: list[dict[str, Any]], kernel: str, teacher: bool) -> dict[str, Any]:
    wanted = {
        "target": "sm_90", "kernel": kernel, "dtype": "bf16", "teacher": teacher,
        "diagnostics": False, "float8": False,
    }  # fmt: skip
    return next(r for r in records if wanted.items() <= r.items())


def _library_seconds(case: Case) -> tuple[float, float]:
    """DX and dY: at the library's rate, and the bytes of dS written once and read twice."""
    work = 2 * case.unit / (LIBRARY * RATE)
    return work, 3 * case.rows * case.cols * BYTES / MEMORY


def predict(records: list[dict[str, Any]]) -> str:
    """The page."""
    kernels, steps = [], []
    for case in CASES:
        total = 0.0
        for kernel in ("statistics", "gradient"):
            record = _find(records, kernel, case.teacher)
            t = tile(record, case.depth)
            share = t.product / t.clocks
            work = (1 + case.teacher) * case.unit / RATE
            total += work / share
            clocks = t.units | t.after
            kernels.append(
                [case.name, kernel, record["tile"].split(",")[0], str(t.programs)]
                + [f"{clocks[name] / t.product:.2f}" for name in clocks if name != "product"]
                + [f"{share:.0%}", t.limit, seconds(work / share)]
            )
        work, moved = _library_seconds(case)
        products = 6 if case.teacher else 4
        total += max(work, moved)
        floor = products * case.unit / RATE
        steps.append(
            [
                case.name,
                f"{products} U",
                *(seconds(value) for value in (floor, max(work, moved), moved, total)),
                f"{floor / total:.0%}",
                f"{floor / LIBRARY / total:.0%}",
            ]
        )
    head = ["case", "kernel", "tile", "programs", "shared memory", "L2", "exponentials"]
    head += ["instructions", "shuffles", "of the rate at most", "limited by", "time at least"]
    after = ["case", "operations", "at the data sheet's rate", "dX and dY", "dS in memory"]
    after += ["step at least", "of the data sheet's rate", "of the library's rate"]
    return f"""# Predictions for an H100 SXM: not measured

`python -m bench.predict` computes them; its source names the rates. Columns from shared memory to
shuffles are the time of that unit over the time of the product itself at the data sheet's rate.

{table(head, kernels)}

A step adds the two gradient products, which the vendor's BLAS is taken to run at
{LIBRARY:.0%} of the data sheet's rate, and which the traffic of dS overlaps.

{table(after, steps)}
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the tables as Markdown")
    arguments = parser.parse_args()
    page = predict(json.loads((RESULTS / "machine_code.json").read_text()))
    if arguments.out:
        arguments.out.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
