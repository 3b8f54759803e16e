"""A step's seconds, against numbers worked out by hand."""

import pytest
import torch

from bench.models.chunk_costs import ChunkCosts
from bench.models.rates import L2_PRODUCT_SHARE, Rates
from bench.models.step_model import (
    CASES,
    DEFAULT,
    KEEPS,
    REST,
    RETURN,
    Case,
    floor,
    gradient,
    kernel,
    partial,
    step,
)
from mxm_kernels.backends.interface import Memory, Problem
from mxm_kernels.backends.triton import plan

RECORD = {
    "target": "sm_90", "kernel": "statistics", "dtype": "bf16", "diagnostics": False,
    "kept": False, "pointers": False, "neg_sum": False, "teacher": False,
    "tile": "64 x 128 x 64, 3 stages",
    "matrix": {"HGMMA.64x128x16": 4}, "programs": 2,
    "exponentials_each": 1.0, "instructions_each": 16.0, "shuffles_each": 0.5,
}  # fmt: skip
CASE = Case("a case", 64 * 1000, 128 * 100, 1024, False)
TILES = 1000 * 100
# Round numbers: 100 multiprocessors at 1 GHz, 1 PFLOP/s, L2 gives a product 7.8 TB/s.
RATES = Rates(
    processors=100, clock=1e9, copy=2e12, additions=1e12, cubed=1e15, by_k={1024: 1e15},
    l2_stream=7.8e12 / L2_PRODUCT_SHARE,
)  # fmt: skip


def test_a_kernel_by_hand():
    k = kernel(RECORD, CASE, RATES)
    assert k.units["product"] == pytest.approx(2 * 64 * 128 * 1024 * TILES / 1e15)
    # wgmma reads 64 rows once and 128 columns once, and both were written: 2 (192) 1024 2 bytes.
    clocks = 2 * 192 * 1024 * 2 / 128
    assert k.units["shared memory"] == pytest.approx(clocks * TILES / (100 * 1e9))
    assert k.units["L2"] == pytest.approx(192 * 1024 * 2 * TILES / 7.8e12)
    assert k.after["exponentials"] == pytest.approx(64 * 128 / 16 * TILES / 1e11)
    assert k.after["instructions"] == pytest.approx(16 * 64 * 128 / 128 * TILES / 1e11)
    assert k.after["shuffles"] == pytest.approx(64 * 128 / 2 / 32 * TILES / 1e11)
    # Three numbers for each of 64 rows and 128 columns.
    assert k.after["memory"] == pytest.approx(3 * 4 * 192 * TILES / 2e12)
    assert k.hidden == k.units["shared memory"]
    assert k.exposed == pytest.approx(k.units["shared memory"] + k.after["instructions"])
    assert k.limit == "shared memory, then instructions"


def test_what_is_kept_is_written():
    k, without = (kernel(RECORD | {"kept": kept}, CASE, RATES) for kept in (True, False))
    written = k.after["memory"] - without.after["memory"]
    assert written == pytest.approx(2 * 64 * 128 * TILES / 2e12)
    assert k.units == without.units


def test_the_product_is_never_faster_than_the_vendors():
    slow = kernel(RECORD, CASE, Rates(by_k={1024: 1e12}))
    assert slow.hidden == pytest.approx(CASE.unit / 1e12)
    assert slow.limit.startswith("product, then ")


def test_a_teacher_doubles_the_product_and_its_gradient_is_written_once():
    both = Case("a teacher's", CASE.rows, CASE.cols, CASE.depth, True)
    k = kernel(RECORD | {"kernel": "gradient"}, both, RATES)
    assert k.units["L2"] == pytest.approx(2 * kernel(RECORD, CASE, RATES).units["L2"])
    assert k.after["memory"] == pytest.approx(2 * CASE.entries / 2e12)


def test_a_kernel_of_kept_products_reads_and_writes_and_multiplies_nothing():
    both = Case("a teacher's", CASE.rows, CASE.cols, CASE.depth, True)
    k = kernel(RECORD | {"kernel": "stored_gradient", "tile": "64 x 64"}, both, RATES)
    assert k.units == {"memory": pytest.approx(3 * 2 * CASE.entries / 2e12)}
    assert set(k.after) == {"exponentials", "instructions", "shuffles"}


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


RECORDS = [
    RECORD | {"kernel": name, "teacher": teacher, "kept": kept}
    for name in ("statistics", "gradient", "sigmoid_gradient", "stored_gradient")
    for teacher in (False, True)
    for kept in (False, True)
]


@pytest.mark.parametrize(("teacher", "again", "products"), [(False, 2, 4), (True, 4, 6)])
def test_a_step_that_keeps_nothing_and_its_floors(teacher, again, products):
    case = Case("a case", 16384, 16384, 768, teacher, budget=1 << 29)
    assert not case.kept and case.products == case.recomputed == products
    rates = Rates()
    # 384 tiles of dX and of dY, in the last wave as full as the cube's: at the cube's rate.
    expected = again * case.unit / (0.885 * 798e12) + 2 * case.unit / 798e12
    assert floor(case, rates) == pytest.approx(expected)
    s = step(case, RECORDS, rates)
    assert s.cubed == pytest.approx(products * case.unit / 798e12)
    beside = s.gradient.dx + s.gradient.dy + s.rest
    assert s.hidden == pytest.approx(s.statistics.hidden + s.dS.hidden + beside)
    assert s.exposed == pytest.approx(s.statistics.exposed + s.dS.exposed + beside)
    assert s.rest == pytest.approx(REST + partial(RECORD, case) / rates.copy)
    assert s.gradient.costs.chunks == 1 and s.gradient.costs.added_bytes == 0


def test_a_step_that_keeps_reads_instead_of_multiplying():
    again, kept = (Case("", 16384, 16384, 768, True, budget) for budget in (1 << 29, 4 << 30))
    assert (again.products, kept.products, kept.recomputed) == (6, 4, 6)
    s, before = (step(case, RECORDS, Rates()) for case in (kept, again))
    assert set(s.dS.units) == {"memory"} and set(before.dS.units) > {"product", "L2"}
    assert s.floor == before.floor and s.cubed == before.cubed
    # A program of the other kernel for each tile of 64 x 128 finds that it has nothing to do.
    assert s.rest - before.rest == pytest.approx(256 * 128 * RETURN)


def test_the_sigmoids_one_pass_has_no_statistics():
    case = Case("", 16384, 16384, 768, False, sigmoid=True)
    s = step(case, RECORDS, Rates())
    assert s.statistics is None and case.products == case.recomputed == 3
    assert s.exposed == pytest.approx(s.dS.exposed + s.gradient.seconds + REST)
    assert s.floor == pytest.approx(case.unit * (1 / (0.885 * 798e12) + 2 / 798e12))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}, {case.budget >> 30} GiB")
def test_chunks_are_those_of_the_plan(case):
    meta = {"dtype": torch.bfloat16, "device": "meta"}
    x, y = torch.empty(case.rows, case.depth, **meta), torch.empty(case.cols, case.depth, **meta)
    nothing = torch.empty(0, device="meta")
    teacher = (x, y) if case.teacher else (None, None)
    problem, memory = Problem(x, y, *teacher, *(nothing,) * 8), Memory(case.budget, True)
    if not case.sigmoid:
        assert case.kept == (plan.kept_stride(problem, memory) is not None)
    shape = plan.chunk_of(problem, memory, case.kept_bytes, remade=False)
    assert (case.chunks().height, case.chunks().width) == shape


def test_the_larger_budget_keeps_and_the_default_does_not():
    for case in CASES:
        assert case.budget in (DEFAULT, KEEPS)
        assert case.kept == (case.budget == KEEPS)


def test_what_square_chunks_save():
    """At 65,536 squared, against chunks of 2,048 rows by all columns: bench/README.md has both."""
    case = next(case for case in CASES if case.name.startswith("InfoNCE"))
    tall = ChunkCosts(2048, 65536, 32, 31 * 65536 * 768 * 8, 48, 1536)
    before, now = (gradient(case, costs, Rates()) for costs in (tall, case.chunks()))
    assert now.costs.added_bytes < before.costs.added_bytes / 7
    assert now.seconds < 0.8 * before.seconds
