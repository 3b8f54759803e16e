"""A scale for each row: features that carry it, and their gradients.

With s (rows,) the scales of features x (rows, D), in the dtype of x and rounded once:

    z_i = s_i x_i                    NaN where s_i is not positive

The one run reads z, the other x itself. With dz and dx the gradients by what they read:

    dx_i <- dx_i + s_i dz_i          ds_i = sum_d dz_id x_id
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import threshold


def scaled(features: Tensor, scale: Tensor) -> Tensor:
    """Features (rows, D) times their scale, (rows,) or (): z."""
    rows = threshold(scale, 0, torch.nan).expand(features.shape[0])[:, None]
    return (features.to(scale.dtype) * rows).to(features.dtype)


def gradients(x: Tensor, scale: Tensor, dz: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the features (rows, D), in their dtype, and of the scale (rows,)."""
    rows, wide = threshold(scale, 0, torch.nan)[:, None], dz.to(scale.dtype)
    by_features = torch.addcmul(dx.to(scale.dtype), wide, rows).to(x.dtype)
    return by_features, (wide * x.to(scale.dtype)).sum(1)
