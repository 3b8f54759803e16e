"""Compile every Triton kernel in every shipped launch setting, without a GPU, and report it.

    python -m bench.models.machine_code [--out FILE] [TARGET ...]

For each kernel: registers, spilled bytes, shared memory against the target's limit, programs
on a multiprocessor (``occupancy``) and the mix of instructions (``instructions``). The tests
hold these to their limits. FILE, and a table beside it in Markdown, are in bench/results. Run it
without TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.models.instructions import mix
from bench.models.machine_code_page import markdown
from bench.models.occupancy import occupancy
from bench.models.resources import amd_usage, cuda_code
from mxm_kernels.backends.triton import launch, merge, unit
from mxm_kernels.backends.triton.diagnostics import BLOCK as DIAGNOSTICS_BLOCK
from mxm_kernels.backends.triton.diagnostics import diagnostic_sums_kernel
from mxm_kernels.backends.triton.draw import DRAW, drawn_weights_kernel
from mxm_kernels.backends.triton.float8 import TILE as FLOAT8_TILE
from mxm_kernels.backends.triton.float8 import float8_teacher_kernel
from mxm_kernels.backends.triton.gradient import SUM_BLOCK, gradient_kernel, scale_gradient_kernel
from mxm_kernels.backends.triton.positives import BLOCK as PAIR_BLOCK
from mxm_kernels.backends.triton.positives import pair_gradient_kernel
from mxm_kernels.backends.triton.queues import BLOCK as QUEUE_BLOCK
from mxm_kernels.backends.triton.queues import merge_queue_backward_kernel, merge_queue_kernel
from mxm_kernels.backends.triton.rows import (
    BACKWARD_BLOCK,
    FORMULAS,
    row_losses_backward_kernel,
    row_losses_kernel,
)
from mxm_kernels.backends.triton.rows import BLOCK as ROW_BLOCK
from mxm_kernels.backends.triton.settings import Cell, Launch, Phase
from mxm_kernels.backends.triton.sigmoid import sigmoid_statistics_kernel
from mxm_kernels.backends.triton.sigmoid_gradient import (
    sigmoid_gradient_kernel,
    sigmoid_pairs_kernel,
)
from mxm_kernels.backends.triton.sigmoid_scaling import TIMES_BLOCK, times_kernel
from mxm_kernels.backends.triton.statistics import statistics_kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes of shared memory one program may use: CUDA programming guide, table of technical
# specifications per compute capability, and the CDNA3 instruction set guide (LDS). sm_80's
# row also serves 8.6, 8.9 and 12.x, whose limit is 99 KiB.
SHARED_LIMIT = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
# The unit that the target multiplies fastest with, in its machine code.
MATRIX_UNIT = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTC", "gfx942": "v_mfma"}
# What it multiplies float8 with, where it does; elsewhere the kernels widen it.
FLOAT8_UNIT = {"sm_90": "QGMMA", "sm_100": "UTCQMMA"}
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "tf32": torch.float32,
}

_FEATURES = {"x", "y", "teacher_x", "teacher_y", "dS", "dx", "dy", "dx_out", "dy_out", "a", "b"}
_INT_POINTERS = {
    "a_out": "*u8",
    "b_out": "*u8",
    "image_groups": "*i32",
    "text_groups": "*i32",
    "owners": "*i64",
    "pair_texts": "*i64",
    "slot_places": "*i64",
    "offsets": "*i64",
    "seed": "*i64",
    "lowered": "*i32",
}
_NUMBERS = {"hard", "soft", "constant"}
# Multiples of 16 for the fast dimensions.
_DIVISIBLE = {"D", "TEACHER_D", "stride", "a_stride", "b_stride", "x_length", "y_length"}
_INTEGERS = {
    "M", "N", "first", "width", "row_lines", "col_lines", "pairs", "rows", "tiles", "sums",
    "rounds", "positives_length", "first_row", "last_row", "first_col", "last_col", "group",
    "length", "l0", "l1", "l2", "images", "scale_stride", "count", "queued",
} | _DIVISIBLE  # fmt: skip
# Numbers of a kernel whose names stand for something else in the others.
_OTHER_INTEGERS = {"row_losses_backward": {"positives", "stride"}}

# A formula's parameter, none, one number or one for each row, by what the kernel's name says of it.
_PARAMETERS = {"": 0, ", a parameter": 1, ", a parameter a row": 2}
_WITH_PARAMETER = {"debiased"}  # the formulas that have one
# Constants of the kernels of the rows, by their names in the table.
ROW_LOSSES: dict[str, dict[str, Any]] = {
    f"row_losses, {formula}{words}": {"FORMULA": formula, "PARAMETER": kind, "BLOCK": ROW_BLOCK}
    for formula in sorted(FORMULAS)
    for words, kind in _PARAMETERS.items()
    if (kind > 0) == (formula in _WITH_PARAMETER)
}
ROW_LOSSES_BACKWARD: dict[str, dict[str, Any]] = {
    f"row_losses_backward{words}": {"PARAMETER": kind, "BLOCK": BACKWARD_BLOCK}
    for words, kind in _PARAMETERS.items()
}
KERNELS = {
    "statistics": statistics_kernel,
    "merge": merge.merge_kernel,
    "gradient": gradient_kernel,
    "pair_gradient": pair_gradient_kernel,
    "sigmoid_statistics": sigmoid_statistics_kernel,
    "sigmoid_gradient": sigmoid_gradient_kernel,
    "sigmoid_pairs": sigmoid_pairs_kernel,
    "times": times_kernel,
    **dict.fromkeys(ROW_LOSSES, row_losses_kernel),
    **dict.fromkeys(ROW_LOSSES_BACKWARD, row_losses_backward_kernel),
    "drawn_weights": drawn_weights_kernel,
    "merge_queue": merge_queue_kernel,
    "merge_queue_backward": merge_queue_backward_kernel,
    "diagnostic_sums": diagnostic_sums_kernel,
    "float8_teacher": float8_teacher_kernel,
    "scale_gradient": scale_gradient_kernel,
    "raise": unit.raise_kernel,
    "lower": unit.lower_kernel,
}
# Those that read no features, with the constants of their launch.
_FLOAT32_ONLY: dict[str, dict[str, Any]] = {
    **ROW_LOSSES,
    **ROW_LOSSES_BACKWARD,
    "drawn_weights": DRAW,
    "merge_queue": {"BLOCK": QUEUE_BLOCK},
    "merge_queue_backward": {"BLOCK": QUEUE_BLOCK},
    "diagnostic_sums": {"BLOCK": DIAGNOSTICS_BLOCK},
    "scale_gradient": {"BLOCK": SUM_BLOCK},
    "raise": {"BLOCK": unit.RAISE_BLOCK},
}
_EIGHT_WARPS = {"scale_gradient", "raise", "lower"}
# The kernels that multiply matrices.
PRODUCTS: tuple[Phase, ...] = (
    "statistics",
    "gradient",
    "sigmoid_statistics",
    "sigmoid_gradient",
)
_SWITCH_NAMES = ("teacher", "diagnostics", "float8")
# The (teacher, diagnostics, float8 teacher) of which each kernel has a variant.
_NEITHER, _TEACHER = (False, False, False), (True, False, False)
_DIAGNOSED = (False, True, False), (True, True, False)
_FLOAT8 = (True, False, True)
# Formulas that are never mixed with the soft loss: one has no teacher, the other is that loss.
_ALONE = {"logsumexp": (_NEITHER,), "soft": (_TEACHER,)}
SWITCHES = {
    "statistics": (_NEITHER, _TEACHER, *_DIAGNOSED, _FLOAT8, (True, True, True)),
    "merge": (_NEITHER, _TEACHER, *_DIAGNOSED, _FLOAT8, (True, True, True)),
    "gradient": (_NEITHER, _TEACHER, _FLOAT8),
    "pair_gradient": (_NEITHER, _TEACHER, _FLOAT8),
    "sigmoid_statistics": (_NEITHER,),
    "sigmoid_gradient": (_NEITHER,),
    "sigmoid_pairs": (_NEITHER,),
    "times": (_NEITHER,),
    **{n: _ALONE.get(c["FORMULA"], (_NEITHER, _TEACHER)) for n, c in ROW_LOSSES.items()},
    **dict.fromkeys(ROW_LOSSES_BACKWARD, (_NEITHER, _TEACHER)),
    "drawn_weights": (_NEITHER,),
    "merge_queue": (_NEITHER, _TEACHER),
    "merge_queue_backward": (_NEITHER, _TEACHER),
    "diagnostic_sums": (_NEITHER, _TEACHER),
    "float8_teacher": (_NEITHER,),
    "scale_gradient": (_NEITHER, _TEACHER),
    "raise": (_NEITHER,),
    "lower": (_NEITHER,),
}


def configurations(targets: list[str]) -> Iterator[dict[str, Any]]:
    """Every kernel in every setting that the launchers use."""
    for target, (kernel, switches), dtype in product(targets, SWITCHES.items(), DTYPES):
        if dtype != "fp32" and kernel in _FLOAT32_ONLY:
            continue
        if dtype == "tf32" and kernel not in (*PRODUCTS, "merge"):
            continue
        for switch in switches:
            named = dict(zip(_SWITCH_NAMES, switch, strict=True))
            yield {"target": target, "kernel": kernel, "dtype": dtype, **named}


def _source(config: dict[str, Any]) -> tuple[ASTSource, dict[str, int]]:
    name, teacher, dtype = config["kernel"], config["teacher"], config["dtype"]
    kernel: Any = KERNELS[name]
    diagnostics = config["diagnostics"]
    constants: dict[str, Any] = {
        "TEACHER": teacher,
        "SOFT": teacher and name != "row_losses, soft",
        "WEIGHED": True,
        "T_FIELDS": (4 if diagnostics else 3) if teacher else 0,
        "DIAGNOSTICS": diagnostics,
        "PRECISION": "tf32" if dtype == "tf32" else "ieee",
        "WIDEN": False,
        "FLOAT8": launch.multiplies_float8(config["target"], DTYPES[dtype]),
        "UNIT": (unit.RAISED if dtype == "fp16" else unit.BOUNDED).value,
        "LOWERED": True,
        "a_step": 1,
        "b_step": 1,
    }
    options: dict[str, int] = {}
    if name in PRODUCTS:
        setting = _setting(config)
        constants |= setting.tile()
        options = setting.options()
    elif name == "merge":
        constants |= merge.BLOCK
        options = merge.options(config["float8"])
    elif name in _FLOAT32_ONLY:
        constants |= _FLOAT32_ONLY[name]
    elif name == "times":
        constants["BLOCK"] = TIMES_BLOCK
    elif name == "float8_teacher":
        constants |= FLOAT8_TILE
    elif name == "lower":
        constants["BLOCK"] = unit.LOWER_BLOCK
    if name in _EIGHT_WARPS:
        options = {"num_warps": 8}
    constants |= PAIR_BLOCK
    features = "fp32" if dtype == "tf32" else dtype
    integers = _INTEGERS | (other := _OTHER_INTEGERS.get(name.partition(",")[0], set()))
    signature, attributes = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            kind = "constexpr"
        elif argument in integers:
            kind = "i32"
        elif argument in _NUMBERS:
            kind = "fp32"
        else:
            kind = f"*{features}" if argument in _FEATURES else _INT_POINTERS.get(argument, "*fp32")
            if argument in ("dx", "dy") and features == "fp16":
                kind = "*fp32"  # ``Problem.gradient_dtype``
            if config["float8"] and argument.startswith("teacher") and argument in _FEATURES:
                kind = "*u8"
        signature[argument] = kind
        if kind.startswith("*") or argument in _DIVISIBLE - other:
            attributes[(place,)] = [["tt.divisibility", 16]]
    constants = {key: constants[key] for key in constants if key in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return source, options


def compile_one(config: dict[str, Any]) -> dict[str, Any]:
    """Compile one kernel and read what the compiler made of it."""
    source, options = _source(config)
    target = config["target"]
    compiled = triton.compile(source, target=TARGETS[target], options=options)
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
    if config["kernel"] in PRODUCTS and not amd:
        setting = _setting(config)
        tile = {"lanes": 32 * warps, "elements": setting.rows * setting.cols}
    return {
        "triton": triton.__version__,
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
    """Rows x columns x depth of a product's steps."""
    if config["kernel"] not in PRODUCTS:
        return ""
    setting = _setting(config)
    return f"{setting.rows} x {setting.cols} x {setting.depth}, {setting.stages} stages"


def _setting(config: dict[str, Any]) -> Launch:
    """The launch that the package would take, for any D and any number of rows."""
    switches = {name: config[name] for name in _SWITCH_NAMES}
    cell = Cell(config["kernel"], DTYPES[config["dtype"]], D=768, rows=16_384, **switches)
    return cell.shipped(config["target"])


# The launch table is made for one Triton, under which one kernel spills. Others allocate registers
# otherwise: the most that one of them (3.6, 3.8) spilled is 36 bytes a thread.
TUNED_FOR, SPILLED_BY_OTHERS = "3.9.", 64


# Bytes that are known to spill under it; bench/README.md has the settings that were tried instead.
KNOWN_SPILLS = {("sm_100", "statistics", "tf32"): 8}


def faults(record: dict[str, Any]) -> list[str]:
    """What is wrong with a compiled kernel: spills, shared memory, no matrix instructions."""
    found = []
    known = KNOWN_SPILLS.get((record["target"], record["kernel"], record["dtype"]), 0)
    if record["spilled"] > (known if record["triton"].startswith(TUNED_FOR) else SPILLED_BY_OTHERS):
        found.append(f"spills {record['spilled']} bytes")
    if record["shared"] > record["shared_limit"]:
        found.append(f"{record['shared']} bytes of shared memory, limit {record['shared_limit']}")
    # Exact float32 products have no matrix instruction on NVIDIA.
    multiplies = record["kernel"] in PRODUCTS and record["dtype"] != "fp32"
    unit = MATRIX_UNIT[record["target"]]
    matrix = sum(count for kind, count in record["matrix"].items() if kind.startswith(unit))
    if multiplies and matrix < 1 + record["teacher"]:
        found.append("a product without matrix instructions")
    eighth = FLOAT8_UNIT.get(record["target"]) if record["dtype"] in ("bf16", "fp16") else None
    wanted = multiplies and record["float8"] and eighth is not None
    if wanted and not any(kind.startswith(eighth) for kind in record["matrix"]):
        found.append("a float8 product without 8-bit matrix instructions")
    if record["atomics"]:
        found.append(f"{record['atomics']} atomic operations")
    return found


def report(targets: list[str], workers: int = 2) -> list[dict[str, Any]]:
    """Compile everything for ``targets``."""
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(compile_one, configurations(targets)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--out", type=Path, help="write the records as JSON")
    arguments = parser.parse_args()
    if launch.interpreted():
        sys.exit("TRITON_INTERPRET is set: unset it, interpreted kernels cannot be compiled")
    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown target {', '.join(sorted(unknown))}; known: {', '.join(TARGETS)}")
    records = report(arguments.targets or list(TARGETS))
    page = markdown(records, list(TARGETS))
    if arguments.out:
        arguments.out.write_text(json.dumps(records, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
