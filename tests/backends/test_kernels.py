"""Triton's kernels by every way that a batch can take through them, and that none is left out."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels import (
    Diagnostics,
    Folds,
    fused_cwcl_loss,
    fused_mfh_loss,
    fused_siglip_loss,
    memory_budget,
)
from mxm_kernels.ops.sigmoid_statistics import sigmoid_statistics
from tests.losses.test_mfh import check
from tests.support.cases import NAMED_CASES

WAYS = ["uniform", "without teacher", "several tiles and tails"]


@pytest.fixture
def triton(backend):
    if backend.name != "triton":
        pytest.skip(f"{backend}: its kernels are not Triton's")
    return backend


def _by_pointers(monkeypatch) -> None:
    from mxm_kernels.backends.triton import tile

    monkeypatch.setattr(tile, "described", lambda device: False)


@pytest.mark.parametrize("factors", ["descriptors", "pointers"])
@pytest.mark.parametrize("budget", [0, 1 << 30], ids=["multiplied again", "kept"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WAYS)
def test_every_way_of_16_bit_features(name, dtype, budget, factors, triton, monkeypatch):
    if factors == "pointers":
        _by_pointers(monkeypatch)
    with memory_budget(budget):
        check(NAMED_CASES[name], dtype, triton)


@pytest.mark.parametrize("budget", [0, 1 << 30], ids=["multiplied again", "kept"])
@pytest.mark.parametrize("name", WAYS)
def test_every_way_of_float32_features(name, budget, triton):
    with memory_budget(budget):
        check(NAMED_CASES[name], torch.float32, triton)


@pytest.mark.parametrize("offset", [1, 3])
def test_features_that_begin_at_no_multiple_of_16_bytes(offset, triton):
    """They come by pointers, and give what aligned ones give."""
    from mxm_kernels.backends.triton import tile

    def features(rows: int) -> torch.Tensor:
        room = torch.empty(rows * 32 + offset, dtype=torch.float16, device=triton.device)
        return room[offset:].view(rows, 32)

    losses = []
    made = [normalize(torch.randn(n, 32)).to(triton.device, torch.float16) for n in (12, 10)]
    for shifted in (False, True):
        x, y = (features(len(v)).copy_(v) if shifted else v.clone() for v in made)
        assert isinstance(tile.operand(x, 16, 16), torch.Tensor) == shifted
        x.requires_grad_()
        loss = fused_mfh_loss(x, y, (6, 5), logit_scale=9.0, rounds=None, backend=triton.name)
        losses.append((loss.detach(), *torch.autograd.grad(loss, [x])))
    for aligned, other in zip(*losses, strict=True):
        torch.testing.assert_close(aligned, other)


def _leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return normalize(torch.randn(*shape), dim=-1).to(dtype).requires_grad_()


def _run_everything() -> None:
    """A step by every kernel: losses, options and dtypes that lead to them."""
    folds = (3, 2)
    for dtype in (torch.float16, torch.float32):
        x, y = _leaf(6, 16, dtype=dtype), _leaf(4, 16, dtype=dtype)
        tx, ty = x.detach(), y.detach()
        teacher = {"teacher_image_features": tx, "teacher_text_features": ty}
        common = {"folds": folds, "backend": "triton"}
        s = torch.tensor(9.0, requires_grad=True)
        every_row = torch.full((6,), 9.0), torch.full((4,), 9.0)
        for budget in (0, 1 << 30):
            with memory_budget(budget):
                fused_mfh_loss(x, y, logit_scale=s, rounds=3, **teacher, **common).backward()
        for option in (
            {"teacher_dtype": torch.float8_e4m3fn, **teacher},
            {"label_smoothing": 0.1, **teacher},
            {"diagnostics": Diagnostics(), **teacher},
            {"text_queue": _leaf(3, 16, dtype=dtype).detach(), "hard_weight": 1.0},
            {"text_offsets": torch.zeros(4, requires_grad=True), **teacher},
        ):
            fused_mfh_loss(x, y, logit_scale=s, rounds=None, **option, **common).backward()
        fused_mfh_loss(
            x, y, logit_scale=every_row, rounds=None, hard_weight=1.0, **common
        ).backward()
        fused_cwcl_loss(x, y, logit_scale=s, **teacher, backend="triton").backward()
        b = torch.tensor(-5.0, requires_grad=True)
        for option in ({}, {"text_offsets": torch.zeros(4, requires_grad=True)}):
            fused_siglip_loss(x, y, logit_scale=s, logit_bias=b, **option, **common).backward()
        tables = Folds.uniform(*folds).tables(6, 4, x.device)
        made = sigmoid_statistics(x, y, s, b, tables, "triton")
        (made.softplus_sum.sum() + made.positives.sum()).backward()


@pytest.mark.skipif(torch.cuda.is_available(), reason="launches are told apart where interpreted")
def test_no_kernel_is_without_a_launch(triton):
    """Every kernel of the package, by name; a new one has to be led to above."""
    from bench.calls import named_launches
    from bench.models.shipped_kernels import KERNELS

    launched = set()

    @contextmanager
    def note(name: str):
        launched.add(name)
        yield

    with named_launches(note):
        _run_everything()
    every = {kernel.fn.__name__ for kernel in KERNELS.values()}
    assert every - launched == set()
