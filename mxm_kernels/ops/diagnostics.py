"""The operator of the diagnostics: the list of rows summed up, by the backend."""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.row_interface import DiagnosedRows
from mxm_kernels.ops.library import library

library.define(
    "diagnostic_sums(Tensor neg_lse, Tensor positives, Tensor hardest, Tensor? entropy, "
    "Tensor scale, Tensor offsets, SymInt images, str backend) -> Tensor"
)


def diagnostic_sums(rows: DiagnosedRows, backend: str) -> Tensor:
    """(2, F) the sums, then how many numbers each is of: see ``backends/diagnostics.py``."""
    return torch.ops.mxm_kernels.diagnostic_sums(*rows, backend)


@torch.library.impl(library, "diagnostic_sums", "CompositeExplicitAutograd")
def _sums(*arguments):
    *rows, backend = arguments
    return backends.load(backend).diagnostic_sums(DiagnosedRows(*rows))


@torch.library.register_fake("mxm_kernels::diagnostic_sums", lib=library)
def _fake_sums(neg_lse, positives, hardest, entropy, scale, offsets, images, backend):
    return neg_lse.new_empty((2, 5 if entropy is None else 7))
