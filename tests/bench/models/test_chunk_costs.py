"""Bytes, tiles and memory of the gradient products, counted and recorded without a GPU."""

import pytest
import torch

from bench.models.chunk_costs import backward_bytes, chunk_costs, tiles, waves
from mxm_kernels.backends.interface import Needs
from mxm_kernels.backends.triton.chunks import spans

pytest.importorskip("triton")

from mxm_kernels.backends.triton import workspace as workspaces
from tests.support.recorder import Product, record_backward

SQUARES = [(32_768, 768), (65_536, 768), (131_072, 768)]
MILLION = (10**6, 512)
WORKSPACES = [256 << 20, 1 << 30]


@pytest.fixture(autouse=True)
def plain_memory(poisoned_memory):
    """Without the fills of empty memory, which the tests add: they would be recorded."""
    torch.use_deterministic_algorithms(False)


def _sizes(parts):
    return [last - first for first, last in parts]


def _products(row_spans, col_spans, D):
    """What a walk multiplies."""
    return [
        product
        for h in _sizes(row_spans)
        for w in _sizes(col_spans)
        for product in (Product("dx", h, w, D), Product("dy", w, h, D))
    ]


def _added(row_spans, col_spans, D, accumulates):
    """Bytes of the additions of a walk, chunk by chunk."""
    each = (8 if accumulates else 12) * D
    return sum(
        each * ((r[1] - r[0]) * (c[0] > 0) + (c[1] - c[0]) * (r[0] > 0))
        for r in row_spans
        for c in col_spans
    )


@pytest.mark.parametrize("accumulates", [True, False])
@pytest.mark.parametrize("workspace", WORKSPACES)
@pytest.mark.parametrize(("rows", "D"), SQUARES)
def test_costs_are_those_of_the_recorded_backward(rows, D, workspace, accumulates):
    costs = chunk_costs(rows, rows, D, 2, workspace, accumulates)
    recorded = record_backward(rows, rows, D, workspace, accumulates)
    row_spans, col_spans = spans(rows, costs.height), spans(rows, costs.width)
    assert recorded.products == _products(row_spans, col_spans, D)
    assert recorded.added_bytes == costs.added_bytes
    assert recorded.launches == {
        "raise": 1, "gradient": costs.chunks, "positives": costs.chunks, "scale": 1
    }  # fmt: skip
    _assert_full(recorded.products, costs)
    gradients = 2 * rows * D * 2
    promise = backward_bytes(rows, rows, D, 2, workspace, accumulates)
    assert 0.85 * promise <= recorded.peak - gradients <= promise + 64 * rows


def _assert_full(products, costs):
    """No product leaves multiprocessors without a tile, and none is short of rows."""
    of = {"dx": [], "dy": []}
    for p in products:
        of[p.name].append(tiles(p.rows, p.cols))
    assert (max(of["dx"]), max(of["dy"])) == (costs.dx_tiles, costs.dy_tiles)
    assert waves(min(of["dx"] + of["dy"])) >= 1
    assert all(8192 <= p.rows <= 16384 for p in products if p.name == "dx")


@pytest.mark.parametrize("accumulates", [True, False])
@pytest.mark.parametrize("workspace", WORKSPACES)
def test_costs_of_a_million_squares(workspace, accumulates, monkeypatch):
    """All chunks are generated; the first two and the last two of rows and columns are recorded.

    All 7,482 of them take a minute. A sample's sums are as whole as all of them: it has the first
    and the last chunk of every row and column that it has.
    """
    rows, D = MILLION
    costs = chunk_costs(rows, rows, D, 2, workspace, accumulates)
    row_spans, col_spans = spans(rows, costs.height), spans(rows, costs.width)
    assert len(row_spans) * len(col_spans) == costs.chunks
    assert _added(row_spans, col_spans, D, accumulates) == costs.added_bytes
    _assert_full(_products(row_spans, col_spans, D), costs)

    def sample(length, most):
        parts = spans(length, most)
        return parts[:2] + parts[-2:]

    monkeypatch.setattr(workspaces, "spans", sample)
    recorded = record_backward(rows, rows, D, workspace, accumulates)
    row_spans, col_spans = (part[:2] + part[-2:] for part in (row_spans, col_spans))
    assert recorded.products == _products(row_spans, col_spans, D)
    assert recorded.added_bytes == _added(row_spans, col_spans, D, accumulates)
    gradients = 2 * rows * D * 2
    promise = backward_bytes(rows, rows, D, 2, workspace, accumulates)
    assert recorded.peak - gradients <= promise + 64 * rows


def test_a_chunk_with_all_columns_is_written_in_its_place():
    """32,768 x 32,768 with 1 GiB: two chunks of all columns, so dX has no sum."""
    recorded = record_backward(32_768, 32_768, 768, 1 << 30, True)
    assert len(recorded.products) == 4
    assert recorded.added_bytes == 8 * 32_768 * 768  # of dY, once


def test_what_fits_is_two_products_without_a_sum():
    recorded = record_backward(4096, 8192, 64, 256 << 20, True)
    assert [p.name for p in recorded.products] == ["dx", "dy"]
    assert recorded.added_bytes == 0
    assert recorded.peak < 4096 * 8192 * 2 * 1.1 + 2 * (4096 + 8192) * 64 + 64 * 8192


def test_what_is_kept_is_walked_in_the_same_chunks():
    """Two kernels for a chunk: one reads what is kept, the other multiplies where it is coarse."""
    costs = chunk_costs(32_768, 32_768, 768, 2, 1 << 30, True)
    recorded = record_backward(32_768, 32_768, 768, 1 << 30, True, kept=True)
    assert recorded.products == record_backward(32_768, 32_768, 768, 1 << 30, True).products
    assert recorded.added_bytes == costs.added_bytes
    assert recorded.launches == {
        "raise": 1, "tops": 1, "stored_gradient": costs.chunks, "gradient": costs.chunks,
        "positives": costs.chunks, "scale": 1,
    }  # fmt: skip


def test_float32_sums_are_the_gradients():
    recorded = record_backward(20_000, 20_000, 64, 256 << 20, False, torch.float32)
    # S and T are made again in a chunk of both, 8 bytes an entry, and dS takes the place of S.
    costs = chunk_costs(20_000, 20_000, 64, 8, 256 << 20, True)
    assert recorded.added_bytes == costs.added_bytes
    assert len(recorded.products) == 4 * costs.chunks
    assert recorded.launches["stored_gradient"] == costs.chunks
    assert recorded.peak - 2 * 20_000 * 64 * 4 <= (256 << 20) + 64 * 20_000


@pytest.mark.parametrize(("x", "y"), [(True, False), (False, True)])
def test_a_frozen_tower_costs_no_product(x, y):
    recorded = record_backward(32_768, 32_768, 768, 256 << 20, True, needs=Needs(x, y, False))
    assert {p.name for p in recorded.products} == ({"dx"} if x else {"dy"})
    # The kernel of the scale's gradient also takes the unit out of dx and dy.
    assert recorded.launches["scale"] == 1 and "lower" not in recorded.launches


def test_chunks_are_fuller_than_flat_ones():
    """What chunks of 2,048 rows, whatever the width, left idle."""
    assert waves(tiles(2048, 768)) < 0.5
    assert waves(chunk_costs(65_536, 65_536, 768, 2, 256 << 20, True).dx_tiles) > 1
