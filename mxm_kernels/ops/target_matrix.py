"""The operator that makes the matrix of a mean target; see ``backends/target_matrix.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.ops.library import library

library.define("target_matrix(Tensor a, Tensor b, Tensor factors, str backend) -> Tensor")


def target_matrix(a: Tensor, b: Tensor, factors: Tensor, backend: str) -> Tensor:
    """(M, N) K, from features a (M, D') and b (N, D') and the factors (M + N,); no gradient."""
    return torch.ops.mxm_kernels.target_matrix(a, b, factors, backend)


@torch.library.impl(library, "target_matrix", "CompositeExplicitAutograd")
def _forward(a, b, factors, backend):
    return backends.load(backend).target_matrix(a, b, factors)


@torch.library.register_fake("mxm_kernels::target_matrix", lib=library)
def _fake(a, b, factors, backend):
    return a.new_empty((a.shape[0], b.shape[0]))
