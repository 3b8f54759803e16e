"""Occupancy and predictions, against numbers worked out by hand."""

import pytest

from bench.occupancy import occupancy
from bench.predict import CASES, CLOCK, RESULTS, predict, tile


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "expected"),
    [
        ("sm_90", 255, 73728, 4, (2, "registers")),
        ("sm_90", 168, 73728, 4, (3, "registers")),
        ("sm_90", 128, 98304, 4, (2, "shared memory")),
        ("sm_90", 16, 0, 1, (32, "programs")),
        ("sm_90", 32, 0, 8, (8, "registers")),
        ("sm_80", 255, 32768, 8, (1, "registers")),
        ("gfx942", 222, 16384, 8, (1, "registers")),
        ("gfx942", 64, 16384, 4, (4, "shared memory")),
    ],
)
def test_occupancy(target, registers, shared, warps, expected):
    assert occupancy(target, registers, shared, warps) == expected


def test_tensor_memory_limits_programs():
    assert occupancy("sm_100", 32, 0, 4, tensor_columns=256) == (2, "tensor memory")


RECORD = {
    "tile": "64 x 128 x 64, 3 stages", "teacher": False, "matrix": {"HGMMA.64x128x16": 4},
    "exponentials_each": 1.0, "instructions_each": 16.0, "shuffles_each": 0.5, "programs": 2,
}  # fmt: skip


def test_a_tile_by_hand():
    found = tile(RECORD, depth=1024)
    assert found.product == 64 * 128 * 1024 / 2048
    # wgmma reads 64 rows once and 128 columns once, and both were written: 2 (192) 1024 2 bytes.
    assert found.units["shared memory"] == 2 * 192 * 1024 * 2 / 128
    assert found.after["exponentials"] == 512
    assert found.after["instructions"] == 1024
    assert found.clocks == max(found.units.values())
    assert found.limit == "L2"
    alone = tile(RECORD | {"programs": 1}, depth=1024)
    assert alone.clocks == max(found.units.values()) + 1024


def test_the_rate_is_the_clock_times_the_units():
    assert pytest.approx(1.83e9, rel=1e-2) == CLOCK


def test_every_case_is_in_the_committed_page():
    import json

    page = predict(json.loads((RESULTS / "machine_code.json").read_text()))
    assert all(page.count(case.name) == 3 for case in CASES)
    assert (RESULTS / "h100-predicted.md").read_text() == page
