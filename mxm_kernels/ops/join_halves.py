"""The halves of two runs as one list: all vectors in one launch, and their gradients in one.

    out = first[:end], zeros, second[start:]

Its gradients are made alike, each of a half and of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.ops.library import is_differentiated_once, library

library.define(
    "join_halves(Tensor[] first, Tensor[] second, SymInt[] ends, SymInt[] starts, str backend) -> "
    "Tensor[]"
)


def join_halves(
    first: Sequence[Tensor], second: Sequence[Tensor], cuts: Sequence[int], backend: str
) -> list[Tensor]:
    """Of each pair of equally long vectors: the first up to its cut, the second from there on."""
    made = cast(list[Tensor], _JoinHalves.apply(backend, cuts, *first, *second))
    return [
        v if a.requires_grad or z.requires_grad else v.detach()
        for v, a, z in zip(made, first, second, strict=True)
    ]


class _JoinHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx, backend, cuts, *halves):
        count = len(cuts)
        ctx.backend, ctx.cuts = backend, cuts
        ctx.set_materialize_grads(False)
        made = torch.ops.mxm_kernels.join_halves(
            list(halves[:count]), list(halves[count:]), cuts, cuts, backend
        )
        return tuple(made)

    @staticmethod
    def backward(ctx, *grads):
        given = [k for k, g in enumerate(grads) if g is not None]
        if not given:
            return None, None, *[None] * (2 * len(grads))
        d = [grads[k].contiguous() for k in given]
        cuts, lengths = [ctx.cuts[k] for k in given], [v.shape[0] for v in d]
        made = torch.ops.mxm_kernels.join_halves(
            d + d, d + d, cuts + [0] * len(d), lengths + cuts, ctx.backend
        )
        places = given + [k + len(grads) for k in given]
        by_halves = dict(zip(places, made, strict=True))
        return None, None, *[by_halves.get(k) for k in range(2 * len(grads))]


@torch.library.impl(library, "join_halves", "CompositeExplicitAutograd")
def _forward(first, second, ends, starts, backend):
    with torch.no_grad():
        return backends.load(backend).join_halves(first, second, ends, starts)


@torch.library.register_fake("mxm_kernels::join_halves", lib=library)
def _fake_forward(first, second, ends, starts, backend):
    return [a.new_empty(a.shape) for a in first]


is_differentiated_once("mxm_kernels::join_halves")
