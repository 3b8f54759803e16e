"""Features as the operator reads them: cast by autocast, free of other modes of PyTorch.

``torch.autocast`` casts features as it casts the factors of a matrix product. A tensor made in
``torch.inference_mode``, of features or any other, is copied where gradients are wanted, since
autograd cannot save it.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from mxm_kernels import checks

_MaybeTensor = TypeVar("_MaybeTensor", Tensor, Tensor | None)


def refuse_transforms(*tensors: object) -> None:
    """Refuse forward-mode derivatives, which would silently be zero, and those of torch.func.

    Raises:
        RuntimeError: a tensor carries one.
    """
    if torch.compiler.is_compiling():
        return
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            continue
        tangent = forward_ad.unpack_dual(tensor).tangent
        if tangent is not None or _functorch.is_gradtrackingtensor(tensor):
            raise RuntimeError(
                "mxm_kernels losses have reverse-mode derivatives only: use backward() or "
                "torch.autograd.grad, not torch.func or forward-mode AD"
            )


def as_features(features: _MaybeTensor) -> _MaybeTensor:
    """Features as the operator reads and autograd saves them."""
    if not isinstance(features, Tensor):
        return features
    return as_saved(autocast(features))


def as_saved(tensor: Tensor) -> Tensor:
    """The tensor, or a copy that autograd can save if it was made in inference mode."""
    if torch.compiler.is_compiling() or not tensor.is_inference():
        return tensor
    return tensor.clone() if torch.is_grad_enabled() else tensor


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
