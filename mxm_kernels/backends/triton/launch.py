"""Launch settings of every kernel on every target: one table of frozen dataclasses.

The numbers are chosen so that the compiled kernels neither spill registers nor pass the
target's shared memory (tests/backends/test_machine_code.py compiles every entry).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from triton import knobs

SCRATCH_BYTES = 256 << 20  # bound of a launch's column statistics, whatever the batch
# Rows of x that all programs together walk along y: they are read again for every block of
# columns, so they have to stay in the L2 cache beside those blocks (A100 40 MB, H100 50 MB).
CACHED_BYTES = 12 << 20

Target = Literal["sm_80", "sm_90", "sm_100", "gfx942", "interpreter"]
Phase = Literal["statistics", "gradient"]


@dataclass(frozen=True)
class Launch:
    """Tile of S that one program computes at a time, and how."""

    rows: int
    cols: int
    depth: int  # slice of D per step of the product
    warps: int
    stages: int
    programs: int = 1  # that fit on a multiprocessor together, where the grid is of that size

    def options(self) -> dict[str, int]:
        """Compiler options of the launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}

    def tile(self) -> dict[str, int]:
        """Tile shape as constexpr arguments."""
        return {"BLOCK_M": self.rows, "BLOCK_N": self.cols, "BLOCK_D": self.depth}


@dataclass(frozen=True)
class Setting:
    """Launches of one phase, by width of the features in bits and presence of a teacher."""

    student_16: Launch
    teacher_16: Launch
    student_32: Launch
    teacher_32: Launch
    diagnostics_16: Launch | None = None  # with diagnostics, where the others would spill
    diagnostics_32: Launch | None = None
    float8_16: Launch | None = None  # with a float8 teacher, where the others would spill
    float8_32: Launch | None = None

    def pick(
        self,
        dtype: torch.dtype,
        teacher: bool,
        diagnostics: bool = False,
        float8: bool = False,
    ) -> Launch:
        """The launch for ``dtype`` features, with or without a teacher, which may be in float8."""
        if dtype == torch.float32:
            found = self.teacher_32 if teacher else self.student_32
            measured, eighth = self.diagnostics_32, self.float8_32
        else:
            found = self.teacher_16 if teacher else self.student_16
            measured, eighth = self.diagnostics_16, self.float8_16
        if float8 and eighth is not None:
            return eighth
        return measured if diagnostics and measured is not None else found


_TINY = Launch(16, 16, 16, warps=1, stages=1)

_FLOAT32 = Launch(64, 32, 32, warps=4, stages=2)

# With a teacher two float32 accumulators are live, so tiles are half as wide. No entry spills under
# Triton 3.9, none with 16-bit features under 3.8. Under 3.6, which allocates otherwise, none of the
# 16-bit launches of sm_90 does; elsewhere some have 8 to 36 bytes a thread (bench/README.md).
SETTINGS: dict[Target, dict[Phase, Setting]] = {
    "sm_80": {
        "statistics": Setting(
            student_16=Launch(128, 128, 32, warps=8, stages=3),
            teacher_16=Launch(128, 64, 32, warps=8, stages=3),
            student_32=_FLOAT32,
            teacher_32=Launch(64, 32, 32, warps=8, stages=2),
            float8_32=_FLOAT32,
        ),
        "gradient": Setting(
            student_16=Launch(128, 128, 32, warps=8, stages=3),
            teacher_16=Launch(128, 128, 32, warps=8, stages=3),
            student_32=_FLOAT32,
            teacher_32=_FLOAT32,
        ),
    },
    "sm_90": {
        "statistics": Setting(
            # Two programs on a multiprocessor: one multiplies while the other takes exponentials.
            student_16=Launch(128, 128, 64, warps=4, stages=3, programs=2),
            teacher_16=Launch(64, 128, 64, warps=4, stages=3, programs=2),
            student_32=_FLOAT32,
            teacher_32=_FLOAT32,
            diagnostics_16=Launch(64, 128, 64, warps=8, stages=3),
            # A third accumulator, of the matrix unit's own sums: 4 warps spill 200 bytes.
            float8_16=Launch(64, 128, 32, warps=8, stages=3),
        ),
        "gradient": Setting(
            student_16=Launch(64, 128, 64, warps=4, stages=3),
            teacher_16=Launch(64, 128, 64, warps=4, stages=3),
            student_32=_FLOAT32,
            teacher_32=_FLOAT32,
            float8_16=Launch(64, 128, 32, warps=4, stages=3),  # a depth of 64 spills 16 bytes
        ),
    },
    "sm_100": {
        "statistics": Setting(
            student_16=Launch(128, 64, 64, warps=8, stages=3),
            teacher_16=Launch(64, 64, 64, warps=8, stages=3),
            student_32=_FLOAT32,
            teacher_32=_FLOAT32,
            float8_32=Launch(64, 32, 32, warps=8, stages=2),
        ),
        "gradient": Setting(
            student_16=Launch(128, 64, 64, warps=8, stages=3),
            teacher_16=Launch(128, 64, 64, warps=8, stages=3),
            student_32=Launch(64, 32, 32, warps=8, stages=2),
            teacher_32=_FLOAT32,
        ),
    },
    "gfx942": {
        "statistics": Setting(
            student_16=Launch(128, 128, 32, warps=8, stages=2),
            teacher_16=Launch(128, 128, 32, warps=8, stages=2),
            student_32=Launch(64, 64, 32, warps=8, stages=2),
            teacher_32=Launch(64, 64, 32, warps=8, stages=2),
            diagnostics_16=Launch(128, 64, 32, warps=4, stages=2),
            diagnostics_32=Launch(64, 64, 32, warps=4, stages=2),
        ),
        "gradient": Setting(
            student_16=Launch(128, 128, 32, warps=8, stages=2),
            teacher_16=Launch(128, 64, 32, warps=4, stages=2),  # 128 x 128 spills 72 under 3.6
            student_32=Launch(64, 64, 32, warps=8, stages=2),
            teacher_32=Launch(64, 64, 32, warps=8, stages=2),
        ),
    },
    "interpreter": {
        "statistics": Setting(_TINY, _TINY, _TINY, _TINY),
        "gradient": Setting(_TINY, _TINY, _TINY, _TINY),
    },
}


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU instead of compiling them."""
    return knobs.runtime.interpret


@cache
def target(device: torch.device) -> Target:
    """The row of the table for ``device``."""
    if device.type == "cpu":
        return "interpreter"
    if torch.version.hip is not None:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    # Consumer Blackwell (12.x) has the shared memory and the instructions of sm_80's row.
    by_major: dict[int, Target] = {9: "sm_90", 10: "sm_100", 11: "sm_100"}
    return by_major.get(major, "sm_80")


def multiplies_float8(on: Target, dtype: torch.dtype) -> bool:
    """Whether a float8 teacher's factors are multiplied as they are, beside ``dtype`` features.

    sm_80 cannot, gfx942 has another float8, and the interpreter none. Beside float32 features the
    matrix unit's own sums (see ``tile.products``) would be less exact than all else.
    """
    return on in ("sm_90", "sm_100") and dtype != torch.float32


@cache
def processors(device: torch.device) -> int:
    """Programs that run at once. The interpreter gets 2, so that tests merge partial results."""
    if device.type == "cpu":
        return 2
    return torch.cuda.get_device_properties(device).multi_processor_count


def pick(
    phase: Phase,
    device: torch.device,
    dtype: torch.dtype,
    teacher: bool,
    diagnostics: bool = False,
    float8: bool = False,
) -> Launch:
    """The launch of ``phase`` for features of ``dtype`` on ``device``."""
    return SETTINGS[target(device)][phase].pick(dtype, teacher, diagnostics, float8)


def product_options(dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """How tiles are multiplied, as constexpr arguments of the kernels.

    float32 features follow torch.set_float32_matmul_precision, read through the setting that
    the older and the newer interface share. The interpreter returns
    garbage for bfloat16 products (Triton 3.7.1 and 3.9.0), so there, and only there, the
    factors are widened first.
    """
    rounded = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return {
        "PRECISION": "tf32" if rounded else "ieee",
        "WIDEN": device.type == "cpu" and dtype == torch.bfloat16,
        "FLOAT8": dtype != torch.float32 and multiplies_float8(target(device), dtype),
    }


def workspace_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Dtype of dS in memory: that of the features.

    The interpreter cuts bfloat16 off instead of rounding it, which doubles its error; it gets
    float32.
    """
    if device.type == "cpu" and dtype == torch.bfloat16:
        return torch.float32
    return dtype
