"""The products of a list of pairs: exact, in parts of any size, without a gradient."""

import pytest
import torch

from mxm_kernels.ops import pair_products as module
from mxm_kernels.ops.pair_products import pair_products

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def _batch(dtype, pairs):
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 24, generator=g, dtype=torch.float64).to(dtype) for n in (7, 5))
    return x, y, *(torch.randint(n, (pairs,), generator=g) for n in (7, 5))


@pytest.mark.parametrize("pairs", [0, 1, 50])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_they_are_those_of_float64(dtype, pairs, monkeypatch):
    x, y, images, texts = _batch(dtype, pairs)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exact = (x.double()[images] * y.double()[texts]).sum(1)
    for numbers in (1, 24 * 7, 1 << 20):  # a pair at a time, parts with a tail, all at once
        monkeypatch.setitem(module.NUMBERS, "cpu", numbers)
        made = pair_products(x.requires_grad_(), y, images, texts, wide)
        assert made.dtype == wide and not made.requires_grad
        torch.testing.assert_close(made.double(), exact, rtol=0, atol=1e-5)


def test_a_bfloat16_product_is_not_rounded_to_bfloat16():
    x, y, images, texts = _batch(torch.bfloat16, 50)
    made = pair_products(x, y, images, texts, torch.float32)
    assert not torch.equal(made, made.bfloat16().float())


def test_opcheck():
    arguments = *_batch(torch.float32, 9), torch.float32
    torch.library.opcheck(torch.ops.mxm_kernels.pair_products.default, arguments)
