"""PyTorch's other modes: tensors of inference mode, and derivatives that are not in reverse."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

_MaybeTensor = TypeVar("_MaybeTensor", Tensor, Tensor | None)


def out_of_inference(features: _MaybeTensor) -> _MaybeTensor:
    """Copy a tensor of torch.inference_mode, which autograd cannot save for backward.

    A frozen tower or a momentum teacher may have computed its features in that mode.
    """
    if not isinstance(features, Tensor) or torch.compiler.is_compiling():
        return features
    if not features.is_inference() or not torch.is_grad_enabled():
        return features
    return features.clone()


def refuse_transforms(*tensors: object) -> None:
    """Forward-mode derivatives, which would silently be zero, and those of torch.func.

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
