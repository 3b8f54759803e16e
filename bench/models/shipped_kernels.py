"""The Triton kernels in every launch setting that is shipped, as the compiler takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mxm_kernels.backends.fixed_point import GREATEST_LOGIT
from mxm_kernels.backends.triton import launch, merge, row_scales, target_matrix, unit
from mxm_kernels.backends.triton.diagnostics import BLOCK as DIAGNOSTICS_BLOCK
from mxm_kernels.backends.triton.diagnostics import diagnostic_sums_kernel
from mxm_kernels.backends.triton.draw import DRAW, drawn_weights_kernel
from mxm_kernels.backends.triton.fixed_point import PART, tops_kernel
from mxm_kernels.backends.triton.float8 import TILE as FLOAT8_TILE
from mxm_kernels.backends.triton.float8 import float8_teacher_kernel
from mxm_kernels.backends.triton.gradient import gradient_kernel, stored_gradient_kernel
from mxm_kernels.backends.triton.line_sums import LINES_BLOCK, line_sums_kernel
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
from mxm_kernels.backends.triton.rows_of_features import ROWS, units_kernel
from mxm_kernels.backends.triton.scale_gradient import BLOCKS as SCALE_BLOCKS
from mxm_kernels.backends.triton.scale_gradient import (
    offset_gradients_kernel,
    scale_gradient_kernel,
)
from mxm_kernels.backends.triton.settings import Cell, Launch, Phase
from mxm_kernels.backends.triton.sigmoid import (
    sigmoid_statistics_kernel,
    stored_sigmoid_statistics_kernel,
)
from mxm_kernels.backends.triton.sigmoid_gradient import (
    sigmoid_gradient_kernel,
    stored_sigmoid_gradient_kernel,
)
from mxm_kernels.backends.triton.sigmoid_pairs import sigmoid_pairs_kernel
from mxm_kernels.backends.triton.sigmoid_scaling import TIMES_BLOCK, times_kernel
from mxm_kernels.backends.triton.statistics import statistics_kernel, stored_statistics_kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


@cache
def source() -> str:
    """A hash of the files that say what is compiled: the kernels, their launches and this one."""
    hashed = hashlib.sha256()
    for file in [*sorted(Path(launch.__file__).parent.glob("*.py")), Path(__file__)]:
        hashed.update(file.read_bytes())
    return hashed.hexdigest()[:16]


_FEATURES = {"x", "y", "teacher_x", "teacher_y", "dS", "dx", "dy", "dx_out", "dy_out", "a", "b"}
_FEATURES |= {
    f"{name}{k}" for name in ("x", "z", "dz", "dx", "dx_out") for k in range(row_scales.MATRICES)
}
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
    "S_kept": "*i16",
    "T_kept": "*i16",
}
# Arguments that are tuples of vectors, of a problem with rules; None of another.
_TOLD: dict[str, tuple[str, ...]] = {
    "rules": ("*fp32", "*fp32", "*i64", "*i64", "*fp32"),
    "removed": ("*fp32",) * 2,
    "lines": ("*fp32",) * 3,
}
# Those whose vectors are others in each kernel.
_TOLD_BY: dict[str, tuple[str, ...]] = {
    "merge": ("*fp32",) * 2,
    "pair_gradient": ("*fp32",) * 2,
    "sigmoid_pairs": ("*fp32",) * 2,
    "scale_gradient": (*["*fp32"] * 5, *["*i64"] * 3),
}
_TOLD_VECTORS = "logit_offsets", "a4", "doffsets", "doffsets_out"
_FACTORS = {"x", "y", "teacher_x", "teacher_y"}
_NUMBERS = {"hard", "soft", "constant", "smoothing"}
# Multiples of 16 for the fast dimensions.
_DIVISIBLE = {
    "D",
    "TEACHER_D",
    "stride",
    "source_stride",
    "a_stride",
    "b_stride",
    "x_length",
    "y_length",
}
_DIVISIBLE |= {f"D{k}" for k in range(row_scales.MATRICES)}
_INTEGERS = {
    "M", "N", "first", "width", "row_lines", "col_lines", "pairs", "rows", "tiles", "sums",
    "rounds", "positives_length", "first_row", "last_row", "first_col", "last_col", "group",
    "length", "l0", "l1", "l2", "l3", "l4", "images", "scale_stride", "count", "queued",
    "offsets_length", "side_sums", "height", "again",
    "x_rows", "y_rows", "last", "before", "blocks", "source_row", "source_col",
    "row_blocks", "col_blocks", "rows_again", "cols_again",
} | _DIVISIBLE  # fmt: skip
_INTEGERS |= {f"{name}{k}" for name in ("rows", "stride") for k in range(row_scales.MATRICES)}
# Numbers of a kernel whose names stand for something else in the others.
_OTHER_INTEGERS = {"row_losses_backward": {"positives", "stride"}}

# The switches of which each kernel has variants. Forward writes what is kept, backward reads it, or
# multiplies where it is too coarse. ``pointers``: factors that come by pointers where the target
# has tensor descriptors. ``neg_sum``: the sums of S over the negatives. ``told``: a problem with
# rules; ``filter``: whose thresholds alone read T.
SWITCH_NAMES = ("teacher", "diagnostics", "kept", "pointers", "neg_sum", "told", "filter")
Switch = tuple[bool, ...]


def _switch(*on: str) -> Switch:
    """The variant with these switches on."""
    assert set(on) <= set(SWITCH_NAMES)
    return tuple(name in on for name in SWITCH_NAMES)


def _either(*on: str) -> tuple[Switch, Switch]:
    """The variants with these switches on, without and with a teacher."""
    return _switch(*on), _switch("teacher", *on)


def _told(*on: str) -> tuple[Switch, Switch, Switch]:
    """The variants under rules: without T, with it, and where it is compared alone."""
    return *_either("told", *on), _switch("teacher", "told", "filter", *on)


_NEITHER, _TEACHER = _either()
_DIAGNOSED = _either("diagnostics")
_KEPT = _either("kept")
_POINTERS = _either("kept", "pointers")
_SUMMED = _either("neg_sum")
_SUMMED_KEPT = _either("kept", "neg_sum")
_SIGMOID = (_NEITHER, _switch("pointers"), _switch("told"), _switch("pointers", "told"))
_DESCRIPTORS = ("sm_90", "sm_100")
# Formulas that are not mixed with the soft loss, nor smoothed: one has no teacher, the other is
# that loss.
_ALONE = {"logsumexp": (_NEITHER,), "soft": (_TEACHER,)}

# A formula's parameter, none, one number or one for each row, by what the kernel's name says of it.
_PARAMETERS = {"": 0, ", a parameter": 1, ", a parameter a row": 2}
_WITH_PARAMETER = {"debiased"}  # the formulas that have one
_SMOOTHED = {"": False, ", smoothed": True}
# Constants of the kernels of the rows, by their names in the table.
ROW_LOSSES: dict[str, dict[str, Any]] = {
    f"row_losses, {formula}{words}{more}": {
        "FORMULA": formula,
        "PARAMETER": kind,
        "SMOOTHED": smoothed,
        "BLOCK": ROW_BLOCK,
    }
    for formula in sorted(FORMULAS)
    for words, kind in _PARAMETERS.items()
    for more, smoothed in _SMOOTHED.items()
    if (kind > 0) == (formula in _WITH_PARAMETER) and not (smoothed and formula in _ALONE)
}
ROW_LOSSES_BACKWARD: dict[str, dict[str, Any]] = {
    f"row_losses_backward{words}{more}": {
        "PARAMETER": kind,
        "SMOOTHED": smoothed,
        "BLOCK": BACKWARD_BLOCK,
    }
    for words, kind in _PARAMETERS.items()
    for more, smoothed in _SMOOTHED.items()
}
KERNELS = {
    "statistics": statistics_kernel,
    "stored_statistics": stored_statistics_kernel,
    "units": units_kernel,
    "tops": tops_kernel,
    "merge": merge.merge_kernel,
    "gradient": gradient_kernel,
    "stored_gradient": stored_gradient_kernel,
    "pair_gradient": pair_gradient_kernel,
    "sigmoid_statistics": sigmoid_statistics_kernel,
    "sigmoid_gradient": sigmoid_gradient_kernel,
    "stored_sigmoid_statistics": stored_sigmoid_statistics_kernel,
    "stored_sigmoid_gradient": stored_sigmoid_gradient_kernel,
    "sigmoid_pairs": sigmoid_pairs_kernel,
    "times": times_kernel,
    **dict.fromkeys(ROW_LOSSES, row_losses_kernel),
    **dict.fromkeys(ROW_LOSSES_BACKWARD, row_losses_backward_kernel),
    "drawn_weights": drawn_weights_kernel,
    "merge_queue": merge_queue_kernel,
    "merge_queue_backward": merge_queue_backward_kernel,
    "scale_rows": row_scales.scale_rows_kernel,
    "scale_rows_backward": row_scales.scale_rows_backward_kernel,
    "diagnostic_sums": diagnostic_sums_kernel,
    "float8_teacher": float8_teacher_kernel,
    "scale_gradient": scale_gradient_kernel,
    "line_sums": line_sums_kernel,
    "offset_gradients": offset_gradients_kernel,
    "weight_sums": target_matrix.weight_sums_kernel,
    "target_matrix": target_matrix.target_matrix_kernel,
    "raise": unit.raise_kernel,
    "lower": unit.lower_kernel,
}
# Those that read no features, with the constants of their launch.
_FLOAT32_ONLY: dict[str, dict[str, Any]] = {
    **ROW_LOSSES,
    **ROW_LOSSES_BACKWARD,
    "merge": merge.BLOCK,
    "tops": {"PART": PART.value},
    "drawn_weights": DRAW,
    "merge_queue": {"BLOCK": QUEUE_BLOCK},
    "merge_queue_backward": {"BLOCK": QUEUE_BLOCK},
    "diagnostic_sums": {"BLOCK": DIAGNOSTICS_BLOCK},
    "scale_gradient": SCALE_BLOCKS,
    "line_sums": LINES_BLOCK,
    "offset_gradients": {"BLOCK_R": SCALE_BLOCKS["BLOCK_R"]},
    "weight_sums": target_matrix.TILE,
    "target_matrix": {**target_matrix.TILE, "PARTS": target_matrix.PARTS},
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
# The kernels that read products from memory: those of float32 features, and kept ones of others.
STORED: tuple[Phase, ...] = (
    "stored_statistics",
    "stored_gradient",
    "stored_sigmoid_statistics",
    "stored_sigmoid_gradient",
)
SWITCHES = {
    "statistics": (
        _NEITHER,
        _TEACHER,
        *_DIAGNOSED,
        *_KEPT,
        _switch("teacher", "diagnostics", "kept"),
        *_POINTERS,
        *_SUMMED,
        *_SUMMED_KEPT,
        *_told(),
        *_told("neg_sum"),
        *_told("pointers"),
        *_either("told", "kept", "neg_sum"),
        _switch("teacher", "told", "diagnostics", "kept"),
    ),
    "stored_statistics": (
        _NEITHER,
        _TEACHER,
        *_DIAGNOSED,
        *_SUMMED,
        *_told(),
        *_told("neg_sum"),
        _switch("teacher", "told", "diagnostics"),
    ),
    "units": (_NEITHER, _TEACHER, *_either("told")),
    "tops": (_NEITHER,),
    "merge": (
        _NEITHER,
        _TEACHER,
        *_DIAGNOSED,
        *_SUMMED,
        *_told(),
        *_told("neg_sum"),
        _switch("teacher", "told", "diagnostics"),
    ),
    "gradient": (
        _NEITHER,
        _TEACHER,
        *_KEPT,
        *_POINTERS,
        *_SUMMED,
        *_told(),
        *_told("neg_sum"),
        *_told("pointers"),
        *_either("told", "kept", "neg_sum"),
    ),
    "stored_gradient": (
        _NEITHER,
        _TEACHER,
        *_KEPT,
        *_SUMMED,
        *_SUMMED_KEPT,
        *_told(),
        *_told("neg_sum"),
        *_either("told", "kept", "neg_sum"),
    ),
    "pair_gradient": (_NEITHER, _TEACHER, *_either("told")),
    "sigmoid_statistics": _SIGMOID,
    "sigmoid_gradient": _SIGMOID,
    "stored_sigmoid_statistics": (_NEITHER, _switch("told")),
    "stored_sigmoid_gradient": (_NEITHER, _switch("told")),
    "sigmoid_pairs": (_NEITHER, _switch("told")),
    "times": (_NEITHER, _switch("told")),
    **{n: _ALONE.get(c["FORMULA"], (_NEITHER, _TEACHER)) for n, c in ROW_LOSSES.items()},
    **dict.fromkeys(ROW_LOSSES_BACKWARD, (_NEITHER, _TEACHER)),
    "drawn_weights": (_NEITHER,),
    "merge_queue": (_NEITHER, _TEACHER),
    "merge_queue_backward": (_NEITHER, _TEACHER),
    "scale_rows": (_NEITHER,),
    "scale_rows_backward": (_NEITHER,),
    "diagnostic_sums": (_NEITHER, _TEACHER),
    "float8_teacher": (_NEITHER,),
    "scale_gradient": (_NEITHER, _TEACHER, *_SUMMED, _switch("told")),
    "line_sums": (_switch("told"),),
    "offset_gradients": (_switch("told"),),
    "weight_sums": (_NEITHER,),
    "target_matrix": (_NEITHER,),
    "raise": (_NEITHER, _switch("told")),
    "lower": (_NEITHER,),
}


def configurations(targets: list[str]) -> Iterator[dict[str, Any]]:
    """Every kernel in every setting that the launchers use."""
    for target, (kernel, switches), dtype in product(targets, SWITCHES.items(), DTYPES):
        wide = dtype == "fp32"
        if (kernel in PRODUCTS and wide) or (kernel in _FLOAT32_ONLY and not wide):
            continue
        for switch in switches:
            named = dict(zip(SWITCH_NAMES, switch, strict=True))
            if kernel in STORED and named["kept"] == wide:
                continue  # what is kept of float32 features is float32
            if named["pointers"] and target not in _DESCRIPTORS:
                continue  # it has nothing else
            yield {"target": target, "kernel": kernel, "dtype": dtype, **named}


def as_source(config: dict[str, Any]) -> tuple[ASTSource, dict[str, int]]:
    """What the compiler takes of a configuration, and the options of its launch."""
    name, teacher, dtype = config["kernel"], config["teacher"], config["dtype"]
    kernel: Any = KERNELS[name]
    diagnostics, told = config["diagnostics"], config["told"]
    summed = teacher and not config["filter"]
    constants: dict[str, Any] = {
        "TEACHER": teacher,
        "SOFT": summed and name != "row_losses, soft",
        "TOLD": told,
        "FIVE": told,
        "WEIGHED": True,
        "T_FIELDS": (4 if diagnostics else 3) if summed else 0,
        "DIAGNOSTICS": diagnostics,
        "NEG_SUM": config["neg_sum"],
        "KEEP": config["kept"],
        "COARSE": config["kept"],
        "FIXED": config["kept"],
        "MOST": GREATEST_LOGIT.get(DTYPES[dtype], 0.0),
        "WIDEN": False,
        "UNIT": (unit.RAISED if dtype == "fp16" else unit.BOUNDED).value,
        "LOWERED": True,
        "a_step": 1,
        "b_step": 1,
    }
    options: dict[str, int] = {}
    if name in PRODUCTS:
        setting = setting_of(config)
        constants |= setting.tile()
        options = setting.options()
    elif name in STORED:
        setting = setting_of(config)
        constants |= setting.area()
        options = setting.options()
    elif name == "units":
        constants |= ROWS
    elif name in _FLOAT32_ONLY:
        constants |= _FLOAT32_ONLY[name]
    elif name == "times":
        constants["BLOCK"] = TIMES_BLOCK
    elif name == "float8_teacher":
        constants |= FLOAT8_TILE
    elif name in ("scale_rows", "scale_rows_backward"):
        constants |= row_scales.TILE
    elif name == "lower":
        constants["BLOCK"] = unit.LOWER_BLOCK
    vectors = {**_TOLD, "told": _TOLD_BY.get(name, ())}
    if not told:
        constants |= dict.fromkeys((*vectors, *_TOLD_VECTORS))
    if name in _EIGHT_WARPS:
        options = {"num_warps": 8}
    constants |= PAIR_BLOCK
    described = name in PRODUCTS and config["target"] in _DESCRIPTORS and not config["pointers"]
    integers = _INTEGERS | (other := _OTHER_INTEGERS.get(name.partition(",")[0], set()))
    signature: dict[str, str | tuple[str, ...]] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            kind = "constexpr"
        elif argument in vectors:
            signature[argument] = vectors[argument]
            for number, _ in enumerate(vectors[argument]):
                attributes[place, number] = [["tt.divisibility", 16]]
            continue
        elif argument in integers:
            kind = "i32"
        elif argument in _NUMBERS:
            kind = "fp32"
        else:
            kind = f"*{dtype}" if argument in _FEATURES else _INT_POINTERS.get(argument, "*fp32")
            if argument in ("dx", "dy") and dtype == "fp16":
                kind = "*fp32"  # ``Problem.gradient_dtype``
            if argument in ("S", "T") and config["kept"]:
                kind = "*i16"
            if described and argument in _FACTORS:
                block = constants["BLOCK_M" if argument.endswith("x") else "BLOCK_N"]
                kind = f"tensordesc<{dtype}[{block}, {constants['BLOCK_D']}]>"
            if described and argument in ("S_kept", "T_kept"):
                kind = f"tensordesc<i16[{constants['BLOCK_M']}, {constants['BLOCK_N']}]>"
        signature[argument] = kind
        if kind.startswith("*") or argument in _DIVISIBLE - other:
            attributes[(place,)] = [["tt.divisibility", 16]]
    constants = {key: constants[key] for key in constants if key in kernel.arg_names}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return source, options


def setting_of(config: dict[str, Any]) -> Launch:
    """The launch that the package would take, for any D and any number of rows; or its own."""
    if "launch" in config:
        return Launch(*config["launch"])
    teacher, diagnostics = config["teacher"], config["diagnostics"]
    cell = Cell(
        config["kernel"], DTYPES[config["dtype"]], teacher, 768, 16_384, diagnostics, config["told"]
    )
    return cell.shipped(config["target"], config["pointers"], config["neg_sum"])
