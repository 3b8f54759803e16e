"""The logarithm of a sum of two exponentials, with a gradient where both are nothing."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from mxm_kernels.backends.queues import share


class _AddLog(torch.autograd.Function):
    """log(exp(a) + exp(b)); where both are -inf its gradient is 0, not NaN."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return torch.logaddexp(a, b)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        of_a = grad * share(a, b)
        return of_a, grad - of_a


def add_log(a: Tensor, b: Tensor) -> Tensor:
    """(rows,) log(exp(a) + exp(b)), -inf where both are."""
    return cast(Tensor, _AddLog.apply(a, b))
