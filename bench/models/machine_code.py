"""Compile every Triton kernel in every shipped launch setting, without a GPU, and report it.

    python -m bench.models.machine_code [--out FILE] [--every N] [TARGET ...]

For each kernel: registers, spilled bytes, shared memory against the target's limit, programs
on a multiprocessor (``occupancy``) and the mix of instructions (``instructions``). The tests
hold these to their limits. FILE, and a table beside it in Markdown, are in bench/results. Run it
without TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import triton

from bench.models.instructions import mix
from bench.models.machine_code_page import markdown
from bench.models.occupancy import occupancy
from bench.models.resources import amd_usage, cuda_code
from bench.models.shipped_kernels import (
    PRODUCTS,
    STORED,
    TARGETS,
    as_source,
    configurations,
    setting_of,
    source,
)
from mxm_kernels.backends.triton import launch

# Bytes of shared memory one program may use: CUDA programming guide, table of technical
# specifications per compute capability, and the CDNA3 instruction set guide (LDS). sm_80's
# row also serves 8.6, 8.9 and 12.x, whose limit is 99 KiB.
SHARED_LIMIT = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
# The unit that the target multiplies fastest with, in its machine code.
MATRIX_UNIT = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTC", "gfx942": "v_mfma"}


def compile_one(config: dict[str, Any]) -> dict[str, Any]:
    """Compile one kernel and read what the compiler made of it."""
    kernel, options = as_source(config)
    target = config["target"]
    compiled = triton.compile(kernel, target=TARGETS[target], options=options)
    amd = target.startswith("gfx")
    if amd:
        text = compiled.asm["amdgcn"]
        usage = amd_usage(text)
    else:
        text, usage = cuda_code(compiled.asm["cubin"])
    shared, warps = compiled.metadata.shared, compiled.metadata.num_warps
    columns = getattr(compiled.metadata, "tmem_size", None) or 0
    programs, limit = occupancy(target, usage["registers"], shared, warps, columns)
    tile = {}
    # AMD's compiler masks branches instead of taking them, so a tile's way cannot be read off.
    if config["kernel"] in (*PRODUCTS, *STORED) and not amd:
        setting = setting_of(config)
        tile = {"lanes": 32 * warps, "elements": setting.rows * setting.cols}
    return {
        "triton": triton.__version__,
        "source": source(),
        **config,
        "tile": _tile(config),
        "warps": warps,
        **usage,
        "shared": shared,
        "shared_limit": SHARED_LIMIT[target],
        "programs": programs,
        "limited_by": limit,
        **mix(text, **tile),
    }


def _tile(config: dict[str, Any]) -> str:
    """Rows x columns, and the depth of a product's steps."""
    if config["kernel"] not in (*PRODUCTS, *STORED):
        return ""
    setting = setting_of(config)
    if config["kernel"] in STORED:
        return f"{setting.rows} x {setting.cols}"
    return f"{setting.rows} x {setting.cols} x {setting.depth}, {setting.stages} stages"


# The Triton that the launch table was measured with, under which nothing spills. Others allocate
# registers otherwise.
TUNED_FOR, SPILLED_BY_OTHERS = "3.6.", 64


def faults(record: dict[str, Any]) -> list[str]:
    """What is wrong with a compiled kernel: spills, shared memory, no matrix instructions."""
    found = []
    if record["spilled"] > (0 if record["triton"].startswith(TUNED_FOR) else SPILLED_BY_OTHERS):
        found.append(f"spills {record['spilled']} bytes")
    if record["shared"] > record["shared_limit"]:
        found.append(f"{record['shared']} bytes of shared memory, limit {record['shared_limit']}")
    multiplies = record["kernel"] in PRODUCTS
    unit = MATRIX_UNIT[record["target"]]
    matrix = sum(count for kind, count in record["matrix"].items() if kind.startswith(unit))
    if multiplies and matrix < 1 + record["teacher"]:
        found.append("a product without matrix instructions")
    # Chosen for sm_90 by measurement: its own matrix instruction, and copies by descriptors.
    described = record["target"] == "sm_90" and multiplies and not record["pointers"]
    if described and not record["copies_tensor"]:
        found.append("factors without tensor copies")
    if record["atomics"]:
        found.append(f"{record['atomics']} atomic operations")
    return found


def report(targets: list[str], every: int = 1, workers: int = 2) -> list[dict[str, Any]]:
    """Compile every ``every``-th kernel of ``targets``."""
    chosen = list(configurations(targets))[::every]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(compile_one, chosen))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--every", type=int, default=1, help="of so many kernels compile one")
    parser.add_argument("--out", type=Path, help="write the records as JSON")
    arguments = parser.parse_args()
    if launch.interpreted():
        sys.exit("TRITON_INTERPRET is set: unset it, interpreted kernels cannot be compiled")
    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target {', '.join(sorted(unknown))}; known: {', '.join(TARGETS)}")
    if arguments.every < 1:
        parser.error(f"--every must be at least 1, got {arguments.every}")
    records = report(arguments.targets or list(TARGETS), arguments.every)
    page = markdown(records, list(TARGETS))
    if arguments.out:
        arguments.out.write_text(json.dumps(records, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
