"""The products <x_i, y_j> of a list of pairs: what the filter takes its thresholds from."""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels.ops.library import library, no_graph

# Numbers of each factor at a time. On a CPU they stay in the cache: 2,100 pairs of 512 numbers took
# 0.5 ms so, and 7 ms at once.
NUMBERS = {"cpu": 1 << 18}
MOST = 1 << 22

library.define(
    "pair_products(Tensor x, Tensor y, Tensor images, Tensor texts, ScalarType dtype) -> Tensor"
)


def pair_products(
    x: Tensor, y: Tensor, images: Tensor, texts: Tensor, dtype: torch.dtype
) -> Tensor:
    """(P,) products of rows of x (M, D) and y (N, D) in ``dtype``; they have no gradient."""
    made: Tensor = torch.ops.mxm_kernels.pair_products(x, y, images, texts, dtype)
    return made


@torch.library.impl(library, "pair_products", "CompositeExplicitAutograd")
def _forward(x, y, images, texts, dtype):
    made = x.new_empty(len(images), dtype=dtype)
    step = max(1, NUMBERS.get(x.device.type, MOST) // max(1, x.shape[1]))
    with no_graph(x):
        for first in range(0, len(images), step):
            part = slice(first, first + step)
            a, b = x.index_select(0, images[part]), y.index_select(0, texts[part])
            torch.linalg.vecdot(a.to(dtype), b.to(dtype), out=made[part])
    return made


@torch.library.register_fake("mxm_kernels::pair_products", lib=library)
def _fake(x, y, images, texts, dtype):
    return x.new_empty(images.shape, dtype=dtype)
