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

# Tiles by kind and presence of a teacher, of those that compile without spills for sm_90 (Triton
# 3.6.0, bfloat16, with descriptors). Left out for what they spill there, in bytes a thread:
# statistics with a teacher 128 x 128 in 4 warps 912 and in 8 256; the gradient with one 128 x 128
# in 4 warps; the sigmoid's 128 x 128 in 4 warps 1696. A tile of 128 x 64 does 43 operations for a
# byte that it reads, one of 128 x 128 64. None is wider than ALIGNMENT, for which every matrix in
# memory has room; 128 x 256 had 425 TFLOP/s on an H200 where 128 x 128 had 539.
_TILES: dict[tuple[Kind, bool], Tiles] = {
    ("statistics", False): (
        (128, 128, 4), (128, 128, 8), (64, 128, 4), (128, 64, 4), (64, 128, 8),
    ),
    ("statistics", True): ((128, 64, 4), (64, 128, 4), (128, 64, 8), (64, 128, 8), (64, 64, 4)),
    ("gradient", False): (
        (128, 128, 4), (64, 128, 4), (128, 128, 8), (128, 64, 4), (64, 128, 8), (64, 64, 4),
    ),
    ("gradient", True): ((64, 128, 4), (128, 64, 4), (64, 128, 8), (128, 64, 8), (64, 64, 4)),
    ("sigmoid_gradient", False): (
        (64, 128, 4), (128, 128, 8), (128, 64, 4), (64, 128, 8), (64, 64, 4),
    ),
}  # fmt: skip
_SLICES: Slices = ((64, 3), (64, 4), (32, 4), (128, 2), (64, 2), (32, 5), (32, 3))
# Of tiles that are read from memory.
_STORED: Tiles = (
    (64, 64, 4), (32, 128, 4), (64, 32, 4), (32, 64, 4), (64, 128, 8), (16, 128, 4), (32, 64, 2),
    (16, 64, 2), (128, 32, 4), (32, 32, 2), (16, 128, 2),
)  # fmt: skip
_UNSLICED: Slices = ((0, 1),)
GROUPS = (4, 8, 16, 32, 64)  # of row blocks: an argument, so another one compiles nothing
_TINY: Tiles = ((16, 16, 1), (16, 32, 1), (32, 16, 1))


def candidates(cell: Cell, on: Target, shared: int) -> list[Launch]:
    """Launches to try for a cell, the most promising first; ``shared`` bytes a program may have."""
    first = cell.shipped(on)
    tiles: Tiles
    slices: Slices
    kind = KINDS[cell.phase]
    stored = kind.startswith("stored")
    if on == "interpreter":
        tiles, slices = _TINY, _UNSLICED if stored else ((16, 1),)
    elif stored:
        tiles, slices = _STORED, _UNSLICED
    else:
        tiles, slices = _TILES[kind, cell.teacher], _SLICES
    found = [first]
    for (depth, stages), (rows, cols, warps) in product(slices, tiles):
        taken = _shared_bytes(rows, cols, depth, stages, cell.dtype)
        launch = Launch(rows, cols, depth, warps, stages, first.group)
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
