"""The walk over the plane: every column chunk, row chunk and merge, forced on small batches."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mxm_kernels import fused_siglip_loss
from mxm_kernels.backends import blocked, tiles
from mxm_kernels.backends.native import plane
from mxm_kernels.operators.sigmoid import sigmoid_statistics
from tests.support.cases import NAMED_CASES, run_fused
from tests.support.compare import assert_as_good
from tests.support.sigmoid import NAMES, batch, differentiated

CASE = NAMED_CASES["several tiles and tails"]


@given(st.integers(1, 1000), st.integers(1, 200))
def test_split_covers_evenly(length, most):
    spans = list(tiles.split(length, most))
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    sizes = {hi - lo for lo, hi in spans}
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1


@pytest.fixture
def small_workspace(monkeypatch, backend):
    """Workspaces of a few hundred numbers: tens of chunks where there was one."""
    if backend.name == "blocked":
        monkeypatch.setattr(blocked, "TILE", 70)
        monkeypatch.setattr(blocked, "TILE_COLUMNS", 9)
    elif backend.name == "native":
        monkeypatch.setattr(plane, "TILE", 70)
        monkeypatch.setattr(plane, "TILE_COLUMNS", 9)
    else:
        from mxm_kernels.backends.triton import gradient, launch

        size = 64 * 64 * 64 if backend.device.type == "cuda" else 1024
        monkeypatch.setattr(launch, "WORKSPACE_BYTES", size)
        monkeypatch.setattr(gradient, "LEAST_ROWS", 16)
        monkeypatch.setattr(gradient, "ALIGNMENT", 16)


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
