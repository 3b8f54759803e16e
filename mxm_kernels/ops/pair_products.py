"""The products <x_i, y_j> of a list of pairs: what the filter takes its thresholds from."""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels.ops.library import library, no_graph

# Numbers of each factor at a time. On a CPU they stay in the cache.
NUMBERS = {"cpu": 1 << 17}
MOST = 1 << 22

library.define(
    "pair_products(Tensor x, Tensor y, Tensor images, Tensor texts, ScalarType dtype) -> Tensor"
)


def pair_products(
    x: Tensor, y: Tensor, images: Tensor, texts: Tensor, dtype: torch.dtype
) -> Tensor:
    """(P,) products of rows of x (M, D) and y (N, D) in ``dtype``; they have no gradient."""
    made: Tensor = torch.ops.mxm_kernels.pair_products(x.detach(), y.detach(), images, texts, dtype)
    return made


@torch.library.impl(library, "pair_products", "CompositeExplicitAutograd")
def _forward(x, y, images, texts, dtype):
    pairs, D = len(images), x.shape[1]
    made = x.new_empty(pairs, dtype=dtype)
    step = min(pairs, max(1, NUMBERS.get(x.device.type, MOST) // max(1, D)))
    rooms = [x.new_empty((step, D)) for _ in range(2)]  # memory anew for every part takes longer
    with no_graph(x):
        for first in range(0, pairs, max(1, step)):
            part = slice(first, min(pairs, first + step))
            factors = []
            for room, features, rows in zip(rooms, (x, y), (images, texts), strict=True):
                chosen = room[: part.stop - first]
                torch.index_select(features, 0, rows[part], out=chosen)
                factors.append(chosen.to(dtype))
            torch.linalg.vecdot(*factors, out=made[part])
    return made


@torch.library.register_fake("mxm_kernels::pair_products", lib=library)
def _fake(x, y, images, texts, dtype):
    return x.new_empty(images.shape, dtype=dtype)
