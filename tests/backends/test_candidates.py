"""The launches that may be tried: the table's own first, none twice, all inside shared memory."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import torch

candidates = pytest.importorskip("mxm_kernels.backends.triton.candidates")
settings = pytest.importorskip("mxm_kernels.backends.triton.settings")
chunks = pytest.importorskip("mxm_kernels.backends.triton.chunks")

H100 = 227 << 10
CELLS = [
    settings.Cell(phase, dtype, teacher, 768, 16_384)
    for phase, dtype, teacher in product(
        settings.KINDS, (torch.bfloat16, torch.float32), (False, True)
    )
    if not (teacher and phase.startswith("sigmoid"))
]
NAMES = [f"{cell.phase}-{cell.dtype}-{cell.teacher}" for cell in CELLS]


@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
@pytest.mark.parametrize("on", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_the_tables_own_comes_first_and_none_twice(cell, on):
    found = candidates.candidates(cell, on, H100)
    assert found[0] == cell.shipped(on)
    code = {(*one.tile().values(), one.warps, one.stages) for one in found}
    assert len(code) == len(found)
    assert len(found) > 10


@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
@pytest.mark.parametrize("on", get_args(settings.Target))
def test_matrices_in_memory_have_room_for_the_tiles_of_each(cell, on):
    """Rows of what is kept and of dS have whole blocks of ALIGNMENT numbers."""
    launches = [cell.shipped(on, pointers=True), *candidates.candidates(cell, on, H100)]
    assert all(chunks.ALIGNMENT % one.cols == 0 for one in launches)


@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
def test_none_but_the_tables_needs_more_shared_memory_than_there_is(cell):
    small = 64 << 10
    for one in candidates.candidates(cell, "sm_90", small)[1:]:
        assert one.stages * (one.rows + one.cols) * one.depth * cell.dtype.itemsize <= small
    if cell.phase.startswith("stored"):
        return  # its tiles have no factors
    assert len(candidates.candidates(cell, "sm_90", small)) < len(
        candidates.candidates(cell, "sm_90", H100)
    )


def test_about_forty_for_the_cell_that_is_measured_by_default():
    counts = {
        teacher: len(
            candidates.candidates(
                settings.Cell("gradient", torch.bfloat16, teacher, 768, 16_384), "sm_90", H100
            )
        )
        for teacher in (False, True)
    }
    assert all(30 <= count <= 55 for count in counts.values()), counts


def test_a_group_makes_no_other_candidate_and_another_tile_does():
    cell = CELLS[0]
    first = cell.shipped("sm_90")
    for group in candidates.GROUPS:
        assert candidates.is_candidate(replace(first, group=group), cell, "sm_90", H100)
    for other in (replace(first, group=3), replace(first, rows=96), replace(first, stages=9)):
        assert not candidates.is_candidate(other, cell, "sm_90", H100)
