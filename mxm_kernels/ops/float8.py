"""A teacher in float8: one operator that rounds its features and folds what it scaled them by.

The backend rounds; ``backends/float8.py`` defines its numbers, which are the same on all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.float8 import FLOAT8
from mxm_kernels.ops.library import library

library.define(
    "float8_teacher(Tensor a, Tensor b, Tensor t, Tensor largest, str backend) "
    "-> (Tensor, Tensor, Tensor)"
)


def largest_of(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """(2,) the greatest magnitude in each matrix, 0 in one without a row; NaN where one is NaN."""
    return torch.stack(
        [
            torch.linalg.vector_norm(f, torch.inf, dtype=dtype)
            if len(f)
            else f.new_zeros((), dtype=dtype)
            for f in (a, b)
        ]
    )


def float8_teacher(
    teacher: tuple[Tensor, Tensor], t: Tensor, largest: Tensor, backend: str
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Teacher features (M, D'), (N, D') rounded to float8, and () their scale.

    ``largest`` (2,), of :func:`largest_of`, may be that of more rows than these.
    """
    a, b, t = torch.ops.mxm_kernels.float8_teacher(*teacher, t, largest, backend)
    return (a, b), t


@torch.library.impl(library, "float8_teacher", "CompositeExplicitAutograd")
def _forward(a, b, t, largest, backend):
    return backends.load(backend).float8_teacher(a, b, t, largest)


@torch.library.register_fake("mxm_kernels::float8_teacher", lib=library)
def _fake(a, b, t, largest, backend):
    return (
        a.new_empty(a.shape, dtype=FLOAT8),
        b.new_empty(b.shape, dtype=FLOAT8),
        torch.empty_like(t),
    )
