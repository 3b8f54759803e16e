"""More than two modalities: every one is contrasted with the product of the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus
from typing_extensions import Unpack

from mxm_kernels import Options, contrastive_rows


# --8<-- [start:symile]
def product(features: Sequence[Tensor]) -> Tensor:
    """(B, D) the modalities multiplied entry by entry, in float32 or wider."""
    wide = torch.promote_types(features[0].dtype, torch.float32)
    return torch.stack(list(features)).to(wide).prod(0)


def symile_loss(
    features: Sequence[Tensor],
    *,
    logit_scale: float | Tensor,
    generator: torch.Generator | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """Symile of n modalities (B, D), row i of all of them a tuple, with B - 1 negatives a row."""
    options["image_to_text_weight"] = 1.0  # the anchors' rows alone
    positive, losses = logit_scale * product(features).sum(1), []
    for k, anchor in enumerate(features):
        others = [f for j, f in enumerate(features) if j != k]
        orders = [torch.randperm(len(f), generator=generator).to(f.device) for f in others]
        mixed = product([f[order] for f, order in zip(others, orders, strict=True)])
        mixed = mixed.to(anchor.dtype)
        rows = contrastive_rows(anchor, mixed, (1, 1), logit_scale=logit_scale, **options)
        losses.append(rows.mean(softplus(rows.neg_lse - positive.repeat(2))))
    return torch.stack(losses).mean()


# --8<-- [end:symile]
