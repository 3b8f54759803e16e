"""Registers and spills of a compiled kernel, as the vendors' compilers state them."""

from __future__ import annotations

import re
import subprocess
import tempfile

import triton


def cuda_code(cubin: bytes) -> tuple[str, dict[str, int]]:
    """SASS, registers and spilled bytes of the (single) function."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def ask(*command: str) -> str:
            command = (*command, file.name)
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        report = ask(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage")
        code = ask(triton.knobs.nvidia.nvdisasm.path, "--print-code")
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage:\n{report}")
    return code, {"registers": int(found[1]), "spilled": int(found[2])}


def amd_usage(assembly: str) -> dict[str, int]:
    """Vector registers, and bytes of scratch memory that a lane spills to."""
    numbers = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", assembly))
    return {
        "registers": int(numbers["vgpr_count"]),
        "spilled": int(numbers["private_segment_fixed_size"]),
    }
