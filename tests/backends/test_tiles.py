"""The walk over the plane: every column chunk, row chunk and merge, forced on small batches."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mxm_kernels import Folds, fused_siglip_loss
from mxm_kernels.backends import tiles
from mxm_kernels.backends.blocked import plane
from mxm_kernels.backends.interface import Needs, Problem
from mxm_kernels.backends.native import tiling
from mxm_kernels.ops.sigmoid_statistics import sigmoid_statistics
from tests.support.cases import NAMED_CASES, Case, run_fused
from tests.support.compare import assert_as_good
from tests.support.plan import in_small_parts
from tests.support.sigmoid import NAMES, batch, differentiated

CASE = NAMED_CASES["several tiles and tails"]
if torch.cuda.is_available():  # whose chunks have whole tiles of 128 columns
    CASE = Case(tuple(i % 40 for i in range(300)), tuple(j % 40 for j in range(290)), dimension=40)


@given(st.integers(1, 1000), st.integers(1, 200))
def test_split_covers_evenly(length, most):
    spans = list(tiles.split(length, most))
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    sizes = {hi - lo for lo, hi in spans}
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("height", [3, 7, 20])
def test_the_sums_beside_the_memory_budget_are_those_documented(height, dtype):
    """Of 16-bit gradients 4 (N D + chunk D) bytes at most, and none where gradients are sums."""
    M, N, D = 20, 15, 4
    tables = Folds.uniform(4, 3).tables(M, N, torch.device("cpu")).pair_tables()
    x, y = (torch.ones(rows, D, dtype=dtype) for rows in (M, N))
    problem = Problem(x, y, None, None, torch.ones(()), None, *tables)
    sums = tiles.GradientSum(problem, Needs(True, True, True))
    most = 0
    for rows in tiles.split(M, height):
        for cols in tiles.split(N, 8):
            dS = torch.ones(rows[1] - rows[0], cols[1] - cols[0])
            sums.add(dS, rows, cols)
            beside = [v for v in (sums.dy, sums._block) if v is not None and v.dtype != dtype]
            most = max(most, sum(v.nbytes for v in beside))
    assert most == (0 if dtype == torch.float32 else 4 * (N * D + -(-M // -(-M // height)) * D))
    made = sums.finish(problem.scale)
    assert torch.equal(made.x, torch.full((M, D), float(N), dtype=dtype))
    assert torch.equal(made.y, torch.full((N, D), float(M), dtype=dtype))


def test_a_cpu_has_no_sums_in_place():
    tiles.accumulates.cache_clear()
    assert not tiles.accumulates(torch.device("cpu"), torch.bfloat16)


def test_sums_in_place_are_asked_for_once(monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "addmm", lambda *args, **kwargs: calls.append(kwargs))
    tiles.accumulates.cache_clear()
    try:
        assert all(tiles.accumulates(torch.device("cpu"), torch.bfloat16) for _ in range(3))
    finally:
        tiles.accumulates.cache_clear()
    (call,) = calls
    assert call["out_dtype"] == torch.float32


def test_a_full_device_is_not_taken_for_one_without_sums_in_place(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch, "addmm", full)
    tiles.accumulates.cache_clear()
    with pytest.raises(torch.OutOfMemoryError):
        tiles.accumulates(torch.device("cpu"), torch.bfloat16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("in_place", [True, False])
def test_products_are_added_in_float32_on_a_gpu(dtype, in_place, monkeypatch):
    """Into a slice, from a slice of the workspace and its transpose, as chunks do."""
    device = torch.device("cuda", torch.cuda.current_device())
    if in_place and not tiles.accumulates(device, dtype):
        pytest.skip("this PyTorch does not add in place here")
    monkeypatch.setattr(tiles, "accumulates", lambda device, dtype: in_place)
    dS = torch.randn(300, 384, device=device).to(dtype)[:251, :333]
    for factor in (dS, dS.T):
        b = torch.randn(factor.shape[1], 40, device=device).to(dtype)
        out = torch.full((factor.shape[0] + 7, 40), float("nan"), device=device)
        tiles.add_product(out[7:], factor, b, first=True)
        tiles.add_product(out[7:], factor, b, first=False)
        expected = 2 * (factor.double() @ b.double())
        torch.testing.assert_close(out[7:].double(), expected, rtol=1e-5, atol=1e-3)
        assert out[:7].isnan().all()


@pytest.fixture
def small_workspace(monkeypatch, backend):
    """Workspaces of a few hundred numbers: tens of chunks where there was one."""
    if backend.name == "blocked":
        monkeypatch.setattr(plane, "TILE", 280)
        monkeypatch.setattr(plane, "TILE_COLUMNS", 9)
    elif backend.name == "native":
        for name in ("TILE", "KEPT_TILE", "LEAST_ROWS", "LEAST_NUMBERS", "KEPT_ROWS"):
            monkeypatch.setattr(tiling, name, 1)
        monkeypatch.setattr(tiling, "STRIP", 8)
        for name in ("CHUNK", "TILE_COLUMNS"):  # as aligned as the vectors that are kept
            monkeypatch.setattr(tiling, name, 32)
    else:
        from mxm_kernels.backends.triton import chunks, plan

        in_small_parts(monkeypatch, backend.interpreted)
        rows, cols = len(CASE.image_ids), len(CASE.text_ids)
        for itemsize in (2, 4, 8):
            least = itemsize * plan.LEAST_CHUNK
            height, width = chunks.chunk_shape(rows, cols, itemsize, least)
            assert height < rows and width < cols


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_chunks_change_nothing(dtype, backend, request):
    whole = run_fused(CASE, dtype, backend)
    request.getfixturevalue("small_workspace")
    chunked = run_fused(CASE, dtype, backend)
    for name, value in chunked.named():
        expected = getattr(whole, name)
        assert_as_good(name, value, expected.double(), expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_chunks_change_nothing_in_the_sigmoid_statistics(dtype, backend, request):
    leaves, tables = batch(backend, dtype, CASE)

    def run():
        return differentiated(lambda v: sigmoid_statistics(*v, tables, backend.name), leaves)

    whole = run()
    request.getfixturevalue("small_workspace")
    for name, value, expected in zip(NAMES, run(), whole, strict=True):
        assert_as_good(name, value, expected.double(), expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_chunks_change_nothing_in_the_sigmoid_loss(dtype, backend, request):
    x, y = (f.to(backend.device) for f in CASE.features(dtype)[:2])

    def run():
        leaves = [v.clone().requires_grad_() for v in (x, y)]
        leaves += [torch.tensor(v, device=x.device, requires_grad=True) for v in (10.0, -5.0)]
        loss = fused_siglip_loss(
            *leaves[:2], CASE.ids, logit_scale=leaves[2], logit_bias=leaves[3], backend=backend.name
        )
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    whole = run()
    request.getfixturevalue("small_workspace")
    for name, value, expected in zip(
        ("loss", "x", "y", "scale", "bias"), run(), whole, strict=True
    ):
        assert_as_good(name, value, expected.double(), expected, dtype)
