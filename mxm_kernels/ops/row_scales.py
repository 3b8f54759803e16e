"""A scale for each row: features that carry it, in one launch; see ``backends/row_scales.py``.

The operator is inside an autograd.Function, which gives the features on to their other reader too.
Both gradients meet there, and are added before they are rounded.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.ops.library import is_differentiated_once, library, wanted

library.define("scale_rows(Tensor[] features, Tensor[] scales, str backend) -> (Tensor[], Tensor)")
library.define(
    "scale_rows_backward(Tensor[] features, Tensor[] scales, Tensor[] dz, Tensor[] dx, "
    "str backend) -> (Tensor[], Tensor[])"
)
Pair = tuple[Tensor, Tensor]  # of the images, of the texts


class ScaledRows(NamedTuple):
    """Features as they are and times their scales."""

    plain: Pair  # (M, D), (N, D)
    scaled: Pair
    teacher: Pair | None  # (M, D'), (N, D') times its scales
    one: Tensor  # () 1, the scale of features that carry their own


def scale_rows(
    features: Pair, scales: Pair, teacher: Pair | None, teacher_scales: Pair, backend: str
) -> ScaledRows:
    """Features (M, D), (N, D) times scales (M,), (N,); differentiable in both, but the teacher's.

    The teacher's scales may be () too. What is returned is to be read instead of ``features``.
    """
    every, every_scale = [*features], [*scales]
    if teacher is not None:
        every += teacher
        every_scale += [s.expand(a.shape[0]) for s, a in zip(teacher_scales, teacher, strict=True)]
    x, y, *made = cast(list[Tensor], _ScaleRows.apply(backend, *every, *every_scale))
    # A gradient that nobody wants would cost the operator a product.
    learned = [f.requires_grad for f in features]
    scaled_learned = [a or s.requires_grad for a, s in zip(learned, scales, strict=True)]
    plain = [p if need else f for p, f, need in zip((x, y), features, learned, strict=True)]
    scaled = [z if need else z.detach() for z, need in zip(made[:2], scaled_learned, strict=True)]
    of_teacher = None if teacher is None else (made[2].detach(), made[3].detach())
    return ScaledRows((plain[0], plain[1]), (scaled[0], scaled[1]), of_teacher, made[-1].detach())


class _ScaleRows(torch.autograd.Function):
    """(x, y, a teacher's, their scales) -> x, y, all of them times their scales, 1."""

    @staticmethod
    def forward(ctx, backend, *given):
        count = len(given) // 2
        features, scales = given[:count], given[count:]
        made, one = torch.ops.mxm_kernels.scale_rows(list(features), list(scales), backend)
        ctx.save_for_backward(*features[:2], *scales[:2])
        ctx.set_materialize_grads(False)
        ctx.backend, ctx.count = backend, count
        x, y = features[:2]
        return x.view_as(x), y.view_as(y), *made, one

    @staticmethod
    def backward(ctx, dx, dy, dz_x, dz_y, *_):
        saved = ctx.saved_tensors  # once: hooks compute or copy them at every access
        features, scales = saved[:2], saved[2:]
        of_features, of_scales = slice(1, 3), slice(1 + ctx.count, 3 + ctx.count)
        needs = [*ctx.needs_input_grad[of_features], *ctx.needs_input_grad[of_scales]]
        counts = [len(x) if needs[k] or needs[k + 2] else 0 for k, x in enumerate(features)]

        def wanted_rows(given):
            """Rows of both sides: all of a side, or none where no gradient of it is wanted."""
            return [
                torch.zeros_like(x[:count]) if v is None else v[:count]
                for v, x, count in zip(given, features, counts, strict=True)
            ]

        by_features, by_scales = torch.ops.mxm_kernels.scale_rows_backward(
            *map(wanted_rows, (features, scales, (dz_x, dz_y), (dx, dy))), ctx.backend
        )
        of_teacher = [None] * (ctx.count - 2)
        by_x, by_y, *by_own_scales = wanted([*by_features, *by_scales], needs)
        return None, by_x, by_y, *of_teacher, *by_own_scales, *of_teacher


@torch.library.impl(library, "scale_rows", "CompositeExplicitAutograd")
def _forward(features, scales, backend):
    with torch.no_grad():
        return backends.load(backend).scale_rows(features, scales)


@torch.library.register_fake("mxm_kernels::scale_rows", lib=library)
def _fake_forward(features, scales, backend):
    return [f.new_empty(f.shape) for f in features], scales[0].new_empty(())


@torch.library.impl(library, "scale_rows_backward", "CompositeExplicitAutograd")
def _backward(features, scales, dz, dx, backend):
    with torch.no_grad():
        return backends.load(backend).scale_rows_backward(features, scales, dz, dx)


@torch.library.register_fake("mxm_kernels::scale_rows_backward", lib=library)
def _fake_backward(features, scales, dz, dx, backend):
    return [f.new_empty(f.shape) for f in features], [s.new_empty(s.shape) for s in scales]


is_differentiated_once("mxm_kernels::scale_rows_backward")
