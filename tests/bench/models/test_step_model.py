"""A step's seconds, against numbers worked out by hand."""

import pytest

from bench.models.chunk_costs import ChunkCosts
from bench.models.rates import Rates
from bench.models.step_model import CASES, REST, Case, chunks, floor, gradient, kernel, step

RECORD = {
    "target": "sm_90", "kernel": "statistics", "dtype": "bf16", "diagnostics": False,
    "float8": False, "tile": "64 x 128 x 64, 3 stages", "teacher": False,
    "matrix": {"HGMMA.64x128x16": 4}, "programs": 2,
    "exponentials_each": 1.0, "instructions_each": 16.0, "shuffles_each": 0.5,
}  # fmt: skip
CASE = Case("a case", 64 * 1000, 128 * 100, 1024, False)
TILES = 1000 * 100
# Round numbers: 100 multiprocessors at 1 GHz, 1 PFLOP/s, L2 gives a product 7.8 TB/s.
RATES = Rates(processors=100, clock=1e9, copy=2e12, additions=1e12, cubed=1e15, by_k={1024: 1e15})


def test_a_kernel_by_hand():
    k = kernel(RECORD, CASE, RATES)
    assert k.product == pytest.approx(2 * 64 * 128 * 1024 * TILES / 1e15)
    # wgmma reads 64 rows once and 128 columns once, and both were written: 2 (192) 1024 2 bytes.
    clocks = 2 * 192 * 1024 * 2 / 128
    assert k.units["shared memory"] == pytest.approx(clocks * TILES / (100 * 1e9))
    assert k.units["L2"] == pytest.approx(192 * 1024 * 2 * TILES / 7.8e12)
    assert "dS to memory" not in k.units
    assert k.after["exponentials"] == pytest.approx(64 * 128 / 16 * TILES / 1e11)
    assert k.after["instructions"] == pytest.approx(16 * 64 * 128 / 128 * TILES / 1e11)
    assert k.after["shuffles"] == pytest.approx(64 * 128 / 2 / 32 * TILES / 1e11)
    assert k.seconds == max(k.units.values()) == k.units["shared memory"]
    assert k.limit == "shared memory"


def test_one_program_does_not_hide_what_follows():
    k = kernel(RECORD | {"programs": 1}, CASE, RATES)
    assert k.seconds == pytest.approx(k.units["shared memory"] + k.after["instructions"])
    assert k.limit == "shared memory, then instructions"


def test_the_product_is_never_faster_than_the_vendors():
    slow = kernel(RECORD, CASE, Rates(by_k={1024: 1e12}))
    assert slow.limit == "product" and slow.seconds == pytest.approx(CASE.unit / 1e12)


def test_a_teacher_doubles_the_product_and_its_gradient_is_written_once():
    both = Case("a teacher's", CASE.rows, CASE.cols, CASE.depth, True)
    k = kernel(RECORD | {"kernel": "gradient"}, both, RATES)
    assert k.units["L2"] == pytest.approx(2 * kernel(RECORD, CASE, RATES).units["L2"])
    assert k.units["dS to memory"] == pytest.approx(2 * CASE.rows * CASE.cols / 2e12)


def test_the_gradients_products_and_additions():
    # 100 tiles fill 100 multiprocessors; the cube's 2,048 fill 2,048 of 2,100 places.
    costs = ChunkCosts(6400, 6400, 20, 3 * 10**9, 100, 200)
    g = gradient(CASE, costs, RATES)
    rate = 1e15 / (2048 / 2100)
    assert (g.dx, g.dy) == pytest.approx((CASE.unit / rate, CASE.unit / rate))
    assert g.additions == pytest.approx(3e-3)
    assert g.seconds == pytest.approx(2 * CASE.unit / rate + 3e-3)
    # A memory so slow that reading dS takes longer than multiplying it.
    slow = gradient(CASE, costs, Rates(copy=1e9))
    assert slow.dx == slow.dy == pytest.approx(2 * CASE.rows * CASE.cols / 1e9)


@pytest.mark.parametrize(("teacher", "again", "products"), [(False, 2, 4), (True, 4, 6)])
def test_the_floors(teacher, again, products):
    case = Case("a case", 16384, 16384, 768, teacher)
    rates = Rates()
    # 384 tiles of dX and of dY, in the last wave as full as the cube's: at the cube's rate.
    expected = again * case.unit / (0.885 * 798e12) + 2 * case.unit / 798e12
    assert floor(case, rates) == pytest.approx(expected)
    records = [RECORD | {"teacher": teacher, "kernel": k} for k in ("statistics", "gradient")]
    costs = chunks(case)
    s = step(case, records, costs, rates)
    assert s.cubed == pytest.approx(products * case.unit / 798e12)
    assert s.seconds == pytest.approx(
        s.statistics.seconds + s.dS.seconds + s.gradient.dx + s.gradient.dy + REST
    )  # one chunk: no additions
    assert costs.chunks == 1 and costs.added_bytes == 0


def test_what_square_chunks_save():
    """At 65,536 squared, against chunks of 2,048 rows by all columns: bench/README.md has both."""
    case, rates = CASES[2], Rates()
    tall = ChunkCosts(2048, 65536, 32, 31 * 65536 * 768 * 12, 48, 1536)
    assert tall.added_bytes == pytest.approx(18.7e9, rel=2e-3)
    before, now = gradient(case, tall, rates), gradient(case, chunks(case), rates)
    assert before.seconds == pytest.approx(28.3e-3, rel=2e-3)
    assert now.seconds == pytest.approx(17.3e-3, rel=3e-3)
    assert now.costs.added_bytes == pytest.approx(2.4e9, rel=1e-2)
