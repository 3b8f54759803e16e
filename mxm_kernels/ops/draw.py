"""The operator that draws positives: how often each one was drawn, counted by the backend."""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.row_interface import Draw
from mxm_kernels.ops.library import library

library.define(
    "drawn_weights(Tensor seed, Tensor offsets, SymInt rounds, SymInt positives, "
    "ScalarType dtype, str backend) -> Tensor"
)


def drawn_weights(draw: Draw, dtype: torch.dtype, backend: str) -> Tensor:
    """(L,) share of the rounds in which each positive was drawn by its row.

    ``backends/draws.py`` says which number of the seed draws what.
    """
    return torch.ops.mxm_kernels.drawn_weights(*draw, dtype, backend)


@torch.library.impl(library, "drawn_weights", "CompositeExplicitAutograd")
def _drawn(*arguments):
    *draw, dtype, backend = arguments
    return backends.load(backend).drawn_weights(Draw(*draw), dtype)


@torch.library.register_fake("mxm_kernels::drawn_weights", lib=library)
def _fake_drawn(seed, offsets, rounds, positives, dtype, backend):
    return seed.new_empty(positives, dtype=dtype)
