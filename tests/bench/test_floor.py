"""The floor is the products of its definition and nothing else."""

import pytest
import torch

from bench.batch import Batch
from bench.cases import Case
from bench.floor import HEIGHTS, Floor, choose_floor, copy_rate

CPU = torch.device("cpu")


@pytest.mark.parametrize(("teacher", "products"), [(True, 6), (False, 4)])
@pytest.mark.parametrize(("height", "blocks"), [(5, 3), (12, 1), (100, 1)])
def test_products(teacher, products, height, blocks):
    floor = Floor(Batch.make(Case(12, 10, 8, teacher=teacher), CPU), height)
    in_forward = []
    floor.step(lambda: in_forward.append(floor.products))
    assert floor.products == products * blocks
    assert in_forward == [(2 if teacher else 1) * blocks]


@pytest.mark.parametrize("height", [5, 12])
def test_the_products_are_over_all_rows_and_columns(height):
    batch = Batch.make(Case(12, 10, 8), CPU)
    floor = Floor(batch, height)
    for _ in range(2):  # a step must not depend on the one before
        floor.step(lambda: None)
        S = batch.x.detach() @ batch.y.detach().T
        torch.testing.assert_close(floor.dx, S @ batch.y.detach())
        torch.testing.assert_close(floor.dy, S.T @ batch.x.detach())


def test_nothing_is_allocated(monkeypatch):
    from tests.support.memory import peak_bytes

    torch.utils.deterministic.fill_uninitialized_memory = False
    floor = Floor(Batch.make(Case(12, 10, 8), CPU), 5)
    floor.step(lambda: None)
    assert peak_bytes(lambda: floor.step(lambda: None), CPU) == 0


def test_every_height_is_tried_and_the_fastest_kept():
    rows = 6 * 50
    floor, seconds = choose_floor(Batch.make(Case(rows, 250, 4), CPU))
    assert set(seconds) == {"256", str(rows)}
    assert seconds[str(floor.height)] == min(seconds.values())
    assert HEIGHTS == (256, 512, 1024, 2048)


@pytest.mark.parametrize("fastest", [torch.bfloat16, torch.float32])
def test_16_bit_features_are_multiplied_in_the_faster_dtype(fastest, monkeypatch):
    seconds = lambda floor, rows: 1.0 + (floor.dtype != fastest)  # noqa: E731
    monkeypatch.setattr("bench.floor._time", seconds)
    floor, _ = choose_floor(Batch.make(Case(12, 10, 8, dtype="bfloat16"), CPU))
    used = (floor.x, floor.y, floor.X, floor.Y, floor.S, floor.T, floor.dx, floor.dy)
    assert {f.dtype for f in used} == {floor.dtype} == {fastest}


def test_float32_features_are_multiplied_in_float32():
    floor, _ = choose_floor(Batch.make(Case(12, 10, 8), CPU))
    assert floor.dtype == torch.float32


def test_the_floor_of_kept_products_has_no_product_twice():
    batch = Batch.make(Case(24, 20, 16), torch.device("cpu"))
    for height in (7, 24):
        floor = Floor(batch, height, keeps=True)
        floor.step(lambda: None)
        assert floor.products == 4 * -(-24 // height)


def test_the_rate_of_a_copy_is_that_of_memory():
    assert 1e8 < copy_rate() < 1e13
