"""The launches that ``python -m mxm_kernels tune`` tries: one list, the table's own first.

A file of measured settings may name no other, so nothing is compiled on trial in a training step.
The list is a product of tiles, depths and stages, less what a target's shared memory cannot hold
and less the tiles that spill registers.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch

from mxm_kernels.backends.triton.settings import KINDS, Cell, Kind, Launch, Target

Tiles = tuple[tuple[int, int, int], ...]  # rows, columns, warps
Slices = tuple[tuple[int, int], ...]  # depth, stages

# Tiles of 16-bit features. A tile of 64 x 128 does 42.7 operations for each byte
# that it reads, one of 128 x 256 85.3. An H200's L2 at 7.8 TB/s then allows 330 and 660 TFLOP/s.
_TILES_16: Tiles = (
    (128, 128, 8), (64, 128, 4), (64, 256, 8), (128, 128, 4), (128, 64, 4), (64, 128, 8),
    (128, 256, 8), (256, 128, 8), (64, 256, 4),
)  # fmt: skip
_SLICES_16: Slices = (
    (64, 3), (64, 4), (32, 4), (128, 2), (32, 5), (64, 2), (32, 3), (128, 3), (64, 5), (32, 2),
)  # fmt: skip
_TILES_32: Tiles = ((64, 32, 4), (64, 32, 8), (64, 64, 8), (64, 64, 4), (128, 32, 8), (128, 64, 8))
_SLICES_32: Slices = ((32, 2), (16, 3), (32, 3), (16, 2))
# The tiles that spill 72 bytes a thread and more on sm_90 in every slice, by kind and presence of a
# teacher (Triton 3.6.0, bfloat16; the most is 1,464).
_SPILLING: dict[tuple[Kind, bool], set[tuple[int, int, int]]] = {
    ("statistics", False): {(128, 256, 8), (256, 128, 8), (64, 256, 4)},
    ("statistics", True): {
        (128, 128, 4), (128, 128, 8), (128, 256, 8), (256, 128, 8), (64, 256, 4),
    },
    ("gradient", False): {(128, 128, 4), (128, 256, 8), (256, 128, 8), (64, 256, 4)},
    ("gradient", True): {(128, 128, 4), (128, 256, 8), (256, 128, 8), (64, 256, 4)},
}  # fmt: skip
GROUPS = (4, 8, 16, 32, 64)  # of row blocks: an argument, so another one compiles nothing
_TINY: Tiles = ((16, 16, 1), (16, 32, 1), (32, 16, 1))


def candidates(cell: Cell, on: Target, shared: int) -> list[Launch]:
    """Launches to try for a cell, the most promising first; ``shared`` bytes a program may have."""
    first = cell.shipped(on)
    tiles: Tiles
    slices: Slices
    if on == "interpreter":
        tiles, slices = _TINY, ((16, 1),)
    elif cell.dtype == torch.float32:
        tiles, slices = _TILES_32, _SLICES_32
    else:
        spilling = _SPILLING[KINDS[cell.phase], cell.teacher]
        tiles = tuple(tile for tile in _TILES_16 if tile not in spilling)
        slices = _SLICES_16
    found = [first]
    for (depth, stages), (rows, cols, warps) in product(slices, tiles):
        taken = _shared_bytes(rows, cols, depth, stages, cell.dtype)
        # Two programs of 4 warps have the registers that one of 8 has.
        programs = 2 if warps <= 4 and 2 * taken <= shared else 1
        launch = Launch(rows, cols, depth, warps, stages, programs, first.group)
        if taken <= shared and not any(_same_code(launch, other) for other in found):
            found.append(launch)
    return found


def is_candidate(launch: Launch, cell: Cell, on: Target, shared: int) -> bool:
    """Whether the launch is one of the list's, in any of the groups."""
    tried = candidates(cell, on, shared)
    groups = {*GROUPS, tried[0].group}
    return launch.group in groups and replace(launch, group=tried[0].group) in tried


def _shared_bytes(rows: int, cols: int, depth: int, stages: int, dtype: torch.dtype) -> int:
    """What the factors of the products take, as the compiler lays them out on sm_90 at most."""
    return stages * (rows + cols) * depth * dtype.itemsize


def _same_code(one: Launch, other: Launch) -> bool:
    """Whether two launches are the same compiled kernel."""
    return (one.tile(), one.options()) == (other.tile(), other.options())
