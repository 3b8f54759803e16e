"""The halves of two runs as one list, and their gradients: one concatenation each.

Every slice of a vector, and its gradient in a vector of zeros, would be launches of their own:
12 for what three vectors take here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor


def join_halves(
    first: Sequence[Tensor], second: Sequence[Tensor], cuts: Sequence[int]
) -> list[Tensor]:
    """Join equally long vectors: the first one up to its cut, the second one from there on."""
    made = cast(list[Tensor], _JoinHalves.apply(cuts, *first, *second))
    return [
        v if a.requires_grad or z.requires_grad else v.detach()
        for v, a, z in zip(made, first, second, strict=True)
    ]


class _JoinHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cuts, *halves):
        ctx.cuts = cuts
        ctx.set_materialize_grads(False)
        first, second = halves[: len(cuts)], halves[len(cuts) :]
        return _cat([(a[:cut], z[cut:]) for a, z, cut in zip(first, second, cuts, strict=True)])

    @staticmethod
    def backward(ctx, *grads):
        given = [k for k, g in enumerate(grads) if g is not None]
        if not given:
            return None, *[None] * (2 * len(grads))
        d = [(grads[k], ctx.cuts[k]) for k in given]
        zeros = d[0][0].new_zeros(max(g.shape[0] for g, _ in d))
        of_first = [(g[:cut], zeros[: g.shape[0] - cut]) for g, cut in d]
        of_second = [(zeros[:cut], g[cut:]) for g, cut in d]
        places = given + [k + len(grads) for k in given]
        made = dict(zip(places, _cat(of_first + of_second), strict=True))
        return None, *[made.get(k) for k in range(2 * len(grads))]


def _cat(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """Each pair of vectors one after the other, all in one launch."""
    lengths = [a.shape[0] + z.shape[0] for a, z in pairs]
    return torch.cat([v for pair in pairs for v in pair]).split(lengths)
