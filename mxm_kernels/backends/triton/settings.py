"""Launch settings of every kernel on every target: one table of frozen dataclasses.

The numbers are chosen so that the compiled kernels neither spill registers nor pass the
target's shared memory (tests/backends/test_machine_code.py compiles every entry). ``candidates``
has the settings beside them that ``python -m mxm_kernels tune`` measures on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from mxm_kernels.backends.interface import Problem

Target = Literal["sm_80", "sm_90", "sm_100", "gfx942", "interpreter"]
Kind = Literal["statistics", "gradient"]
Phase = Literal["statistics", "gradient", "sigmoid_statistics", "sigmoid_gradient"]
# The kernels of the sigmoid loss take the table's launches of the others.
KINDS: dict[Phase, Kind] = {
    "statistics": "statistics",
    "gradient": "gradient",
    "sigmoid_statistics": "statistics",
    "sigmoid_gradient": "gradient",
}


@dataclass(frozen=True)
class Launch:
    """Tile of S that one program computes at a time, and how."""

    rows: int
    cols: int
    depth: int  # slice of D per step of the product
    warps: int
    stages: int
    programs: int = 1  # that fit on a multiprocessor together, where the grid is of that size
    # Row blocks that the programs of a gradient walk together, column by column: ``tile.place_of``.
    # The programs of an H100 then read 16 blocks of x and 17 of y at a time: 4.7 MB at D 768. A
    # chunk's whole x is 25 MB, with a teacher 50 MB, which is all of its L2.
    group: int = 16

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


_TINY = Launch(16, 16, 16, warps=1, stages=1, group=2)

_FLOAT32 = Launch(64, 32, 32, warps=4, stages=2)

# With a teacher two float32 accumulators are live, so tiles are half as wide. Under Triton 3.9 one
# entry spills, 8 bytes in tf32 on sm_100; under 3.8 none with 16-bit features. Under 3.6, which
# allocates otherwise, on sm_90 the statistics without a teacher have 8 bytes a thread; elsewhere
# some have 8 to 36 (bench/README.md).
SETTINGS: dict[Target, dict[Kind, Setting]] = {
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


@dataclass(frozen=True)
class Cell:
    """What a launch is chosen by."""

    phase: Phase
    dtype: torch.dtype  # of the features
    teacher: bool
    D: int
    rows: int  # square root of M N
    diagnostics: bool = False
    float8: bool = False  # whether the teacher is in float8

    @classmethod
    def of(cls, phase: Phase, problem: Problem, diagnostics: bool = False) -> Cell:
        """The cell of a batch."""
        rows = math.isqrt(problem.x.shape[0] * problem.y.shape[0])
        return cls(
            phase,
            problem.x.dtype,
            problem.has_teacher,
            problem.x.shape[1],
            rows,
            diagnostics,
            problem.is_float8,
        )

    def shipped(self, on: Target) -> Launch:
        """The table's launch."""
        setting = SETTINGS[on][KINDS[self.phase]]
        return setting.pick(self.dtype, self.teacher, self.diagnostics, self.float8)
