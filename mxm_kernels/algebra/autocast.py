"""What torch.autocast does to the features."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor

from mxm_kernels import checks

_MaybeTensor = TypeVar("_MaybeTensor", Tensor, Tensor | None)


def autocast(features: _MaybeTensor) -> _MaybeTensor:
    """Cast as torch.autocast casts the factors of a matrix product; float64 stays."""
    if not isinstance(features, Tensor) or features.is_meta:
        return features
    device = features.device.type
    if not torch.is_autocast_enabled(device):
        return features
    if features.dtype not in checks.FEATURE_DTYPES or features.dtype == torch.float64:
        return features
    return cast(_MaybeTensor, features.to(torch.get_autocast_dtype(device)))
