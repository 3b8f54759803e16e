"""The table of the compiled kernels, for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.markdown import table

COLUMNS: dict[str, Callable[[dict[str, Any]], object]] = {
    "kernel": lambda r: (
        r["kernel"]
        + ", teacher" * r["teacher"]
        + ", diagnostics" * r["diagnostics"]
        + ", kept" * r["kept"]
        + ", by pointers" * r["pointers"]
        + ", with sums" * r["neg_sum"]
        + ", rules" * r["told"]
        + ", filter alone" * r["filter"]
    ),
    "dtype": lambda r: r["dtype"],
    "tile": lambda r: r["tile"],
    "warps": lambda r: r["warps"],
    "registers": lambda r: r["registers"],
    "spilled, bytes": lambda r: r["spilled"],
    "shared memory, KiB": lambda r: f"{r['shared'] / 1024:.0f}",
    "programs on a multiprocessor, limited by": lambda r: f"{r['programs']}, {r['limited_by']}",
    "matrix instructions": lambda r: "; ".join(f"{n} {kind}" for kind, n in r["matrix"].items()),
    "loads of 16 bytes / of fewer": lambda r: f"{r['loads_16']} / {r['loads_narrow']}",
    "stores of 16 bytes / of fewer": lambda r: f"{r['stores_16']} / {r['stores_narrow']}",
    "copies, asynchronous / bulk": lambda r: f"{r['copies_asynchronous']} / {r['copies_tensor']}",
    "exponentials": lambda r: r["exponentials"],
    "exponentials an entry": lambda r: r.get("exponentials_each", ""),
    "instructions an entry": lambda r: r.get("instructions_each", ""),
}


def markdown(records: list[dict[str, Any]], targets: list[str]) -> str:
    """A table for each target."""
    page = f"""# Machine code

This is what Triton {records[0]["triton"]} makes of every kernel. `make machine-code` writes this
page and the JSON beside it. The columns count instructions in the code. The last two are for one
entry of a tile, without the loops over D that multiply.
"""
    for target in targets:
        rows = [
            [str(cell(record)) for cell in COLUMNS.values()]
            for record in records
            if record["target"] == target
        ]
        if rows:
            page += f"\n## {target}\n\n{table(list(COLUMNS), rows)}\n"
    return page
