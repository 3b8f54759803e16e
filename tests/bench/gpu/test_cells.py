"""What the compiling phase leaves of a cell, as the sweep reads it again."""

import json
from dataclasses import replace

import pytest

from bench.gpu import cells
from mxm_kernels.tuning.tune import Found

CELL = cells.cells(smoke=True)[0]
SHIPPED = CELL.shipped("interpreter")
OTHER = replace(SHIPPED, rows=2 * SHIPPED.rows)


def read_again(right, faults=()):
    left = json.dumps(cells.record(Found(CELL, SHIPPED, 2, list(right), list(faults))))
    return cells.found(CELL, SHIPPED, json.loads(left))


@pytest.mark.parametrize("right", [[SHIPPED, OTHER], [OTHER]], ids=["with the table's", "without"])
def test_the_launches_that_were_right_are_raced(right):
    again = read_again(right, [(replace(OTHER, warps=2), "spills")])
    assert again.right == right and again.asked == 2


def test_the_tables_launch_is_raced_where_the_phase_left_nothing():
    assert cells.found(CELL, SHIPPED, {}).right == [SHIPPED]


@pytest.mark.parametrize("faults", [[], [(OTHER, "spills")]], ids=["all late", "the other faulty"])
def test_the_tables_launch_is_raced_where_none_was_compiled_in_time(faults):
    assert read_again([], faults).right == [SHIPPED]


def test_a_table_launch_with_a_fault_is_not_raced():
    assert read_again([], [(SHIPPED, "dX is off")]).right == []
    assert read_again([OTHER], [(SHIPPED, "dX is off")]).right == [OTHER]
