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
# Kernels that multiply the tile of 16-bit features, and kernels that read it from memory.
Kind = Literal["statistics", "gradient", "sigmoid_gradient", "stored_statistics", "stored_gradient"]
Phase = Literal[
    "statistics",
    "gradient",
    "sigmoid_statistics",
    "sigmoid_gradient",
    "stored_statistics",
    "stored_gradient",
    "stored_sigmoid_statistics",
    "stored_sigmoid_gradient",
]
# The other kernels of the sigmoid loss take the launches of those that they resemble.
KINDS: dict[Phase, Kind] = {
    "statistics": "statistics",
    "gradient": "gradient",
    "sigmoid_statistics": "statistics",
    "sigmoid_gradient": "sigmoid_gradient",
    "stored_statistics": "stored_statistics",
    "stored_gradient": "stored_gradient",
    "stored_sigmoid_statistics": "stored_statistics",
    "stored_sigmoid_gradient": "stored_gradient",
}


@dataclass(frozen=True)
class Launch:
    """Tile of S that one program computes, and how."""

    rows: int
    cols: int
    depth: int  # slice of D per step of the product; 0 of a tile that is read from memory
    warps: int
    stages: int
    # Row blocks that programs walk together, column by column: ``tile.place_of``. The programs of
    # an H100 then read 16 blocks of x and 17 of y at a time: 4.7 MB at D 768. A chunk's whole x is
    # 25 MB, with a teacher 50 MB, which is all of its L2.
    group: int = 16

    def options(self) -> dict[str, int]:
        """Compiler options of the launch."""
        return {"num_warps": self.warps, "num_stages": self.stages}

    def area(self) -> dict[str, int]:
        """Tile shape as constexpr arguments."""
        return {"BLOCK_M": self.rows, "BLOCK_N": self.cols}

    def tile(self) -> dict[str, int]:
        """Tile shape and the slice of D as constexpr arguments."""
        return {**self.area(), "BLOCK_D": self.depth}

    def tiles(self, rows: int, cols: int) -> int:
        """How many programs cover rows x cols."""
        return -(-rows // self.rows) * -(-cols // self.cols)


@dataclass(frozen=True)
class Setting:
    """Launches of one kind, without and with a teacher."""

    student: Launch
    teacher: Launch
    # Of either, where a target that has tensor descriptors reads a factor by pointers, whose
    # addresses take registers; None: the others serve.
    pointers: Launch | None = None
    # With a teacher and the sums over the negatives, whose gradients take registers too.
    summed: Launch | None = None
    # Under rules, without and with a teacher, and with one by pointers; None: the others serve.
    told: Launch | None = None
    told_teacher: Launch | None = None
    told_pointers: Launch | None = None

    def pick(
        self, teacher: bool, pointers: bool = False, neg_sum: bool = False, told: bool = False
    ) -> Launch:
        """The launch with or without a teacher."""
        if told:
            with_teacher = self.told_pointers if pointers else None
            by_rules = (with_teacher or self.told_teacher) if teacher else self.told
            if by_rules is not None:
                return by_rules
        if pointers and self.pointers is not None:
            return self.pointers
        if teacher and neg_sum and self.summed is not None:
            return self.summed
        return self.teacher if teacher else self.student


_TINY = Launch(16, 16, 16, warps=1, stages=1, group=2)
_SMALL = Launch(16, 16, 0, warps=1, stages=1, group=2)
_STORED = Launch(64, 64, 0, warps=4, stages=1)
_STORED_KINDS: dict[Kind, Setting] = {
    "stored_statistics": Setting(_STORED, Launch(32, 64, 0, warps=4, stages=1)),
    "stored_gradient": Setting(_STORED, _STORED, told_teacher=Launch(32, 64, 0, warps=4, stages=1)),
}

_SIGMOID_90 = Launch(64, 128, 64, warps=4, stages=3, group=64)

# Under rules forward and backward have one tile: a filter decides by the same bits in both.
_TOLD: dict[Target, Launch] = {
    "sm_80": Launch(128, 128, 32, warps=8, stages=3),
    "sm_90": Launch(128, 64, 64, warps=4, stages=3, group=32),
    "sm_100": Launch(128, 64, 64, warps=8, stages=3),
    "gfx942": Launch(128, 128, 32, warps=8, stages=2),
}
_TOLD_TEACHER: dict[Target, Launch] = {
    "sm_80": Launch(128, 64, 32, warps=8, stages=3),
    "sm_90": Launch(64, 64, 64, warps=4, stages=4, group=32),
    "sm_100": Launch(64, 64, 64, warps=8, stages=3),
    "gfx942": Launch(128, 64, 32, warps=8, stages=2),
}
_TOLD_POINTERS_90 = Launch(64, 64, 64, warps=8, stages=3, group=32)

SETTINGS: dict[Target, dict[Kind, Setting]] = {
    "sm_80": {
        "statistics": Setting(
            student=Launch(128, 128, 32, warps=8, stages=3),
            teacher=Launch(128, 64, 32, warps=8, stages=3),
            told=_TOLD["sm_80"],
            told_teacher=_TOLD_TEACHER["sm_80"],
        ),
        "gradient": Setting(
            student=Launch(128, 128, 32, warps=8, stages=3),
            teacher=Launch(128, 128, 32, warps=8, stages=3),
            summed=Launch(128, 64, 32, warps=8, stages=3),
            told=_TOLD["sm_80"],
            told_teacher=_TOLD_TEACHER["sm_80"],
        ),
        "sigmoid_gradient": Setting(
            Launch(128, 128, 32, warps=8, stages=3), Launch(128, 128, 32, warps=8, stages=3)
        ),
        **_STORED_KINDS,
    },
    # Programs of 4 warps, two on a multiprocessor: one multiplies while the other takes
    # exponentials. On an H200 at 16,384 squared and D 768 the statistics ran at 539 TFLOP/s in
    # tiles of 128 x 128 with 4 warps, at 425 in 128 x 256 and 352 in 128 x 128 with 8.
    "sm_90": {
        "statistics": Setting(
            student=Launch(128, 128, 64, warps=4, stages=3, group=32),
            teacher=Launch(128, 64, 64, warps=4, stages=4, group=32),
            pointers=Launch(128, 64, 64, warps=8, stages=3, group=32),
            told=_TOLD["sm_90"],
            told_teacher=_TOLD_TEACHER["sm_90"],
            told_pointers=_TOLD_POINTERS_90,
        ),
        "gradient": Setting(
            student=Launch(128, 128, 64, warps=4, stages=3, group=32),
            teacher=Launch(64, 128, 64, warps=4, stages=3, group=32),
            told=_TOLD["sm_90"],
            told_teacher=_TOLD_TEACHER["sm_90"],
            told_pointers=_TOLD_POINTERS_90,
        ),
        "sigmoid_gradient": Setting(
            _SIGMOID_90, _SIGMOID_90, told=Launch(128, 64, 64, warps=4, stages=3, group=64)
        ),
        **_STORED_KINDS,
    },
    "sm_100": {
        "statistics": Setting(
            student=Launch(128, 64, 64, warps=8, stages=3),
            teacher=Launch(64, 64, 64, warps=8, stages=3),
            told=_TOLD["sm_100"],
            told_teacher=_TOLD_TEACHER["sm_100"],
        ),
        "gradient": Setting(
            student=Launch(128, 64, 64, warps=8, stages=3),
            teacher=Launch(128, 64, 64, warps=8, stages=3),
            told=_TOLD["sm_100"],
            told_teacher=_TOLD_TEACHER["sm_100"],
        ),
        "sigmoid_gradient": Setting(
            Launch(128, 64, 64, warps=8, stages=3), Launch(128, 64, 64, warps=8, stages=3)
        ),
        **_STORED_KINDS,
    },
    "gfx942": {
        "statistics": Setting(
            student=Launch(128, 128, 32, warps=8, stages=2),
            teacher=Launch(128, 64, 32, warps=8, stages=2),
            summed=Launch(64, 64, 32, warps=4, stages=2),
            told=_TOLD["gfx942"],
            told_teacher=_TOLD_TEACHER["gfx942"],
        ),
        "gradient": Setting(
            student=Launch(128, 128, 32, warps=8, stages=2),
            teacher=Launch(128, 64, 32, warps=4, stages=2),
            told=_TOLD["gfx942"],
            told_teacher=_TOLD_TEACHER["gfx942"],
        ),
        "sigmoid_gradient": Setting(
            Launch(128, 128, 32, warps=8, stages=2), Launch(128, 128, 32, warps=8, stages=2)
        ),
        **_STORED_KINDS,
    },
    "interpreter": {
        "statistics": Setting(_TINY, _TINY),
        "gradient": Setting(_TINY, _TINY),
        "sigmoid_gradient": Setting(_TINY, _TINY),
        "stored_statistics": Setting(_SMALL, _SMALL),
        "stored_gradient": Setting(_SMALL, _SMALL),
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
    told: bool = False

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
            problem.told,
        )

    def shipped(self, on: Target, pointers: bool = False, neg_sum: bool = False) -> Launch:
        """The table's launch; ``pointers``: where a factor comes by pointers."""
        return SETTINGS[on][KINDS[self.phase]].pick(self.teacher, pointers, neg_sum, self.told)
