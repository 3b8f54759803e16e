"""The gradients of the sigmoid loss times the upstream gradient: its whole backward."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import SigmoidLoss
from mxm_kernels.backends.triton import launch


@triton.jit
def _times(a, out, block, length, grad, BLOCK: tl.constexpr):
    """A block of a, times grad."""
    place = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(a + place, mask=place < length, other=0.0).to(tl.float32) * grad
    tl.store(out + place, value.to(out.dtype.element_ty), mask=place < length)


@triton.jit
def times_kernel(
    grad,  # ()
    loss,  # ()
    dx,  # (x_length,)
    dy,  # (y_length,)
    dscalars,  # (2,)
    doffsets,  # (offsets_length,), not read unless TOLD
    dx_out,  # (x_length,) out
    dy_out,  # (y_length,) out
    dscalars_out,  # (2,) out
    doffsets_out,  # (offsets_length,) out
    x_length,
    y_length,
    offsets_length,
    TOLD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradients times grad, rounded once: PyTorch would round grad to 16 bits first."""
    # NaN where the loss is not finite: then everywhere.
    block, g = tl.program_id(0), tl.load(grad) + tl.load(loss) * 0.0
    x_blocks, y_blocks = tl.cdiv(x_length, BLOCK), tl.cdiv(y_length, BLOCK)
    if block < x_blocks:
        _times(dx, dx_out, block, x_length, g, BLOCK)
    elif block < x_blocks + y_blocks:
        _times(dy, dy_out, block - x_blocks, y_length, g, BLOCK)
    else:
        _times(dscalars, dscalars_out, block - x_blocks - y_blocks, 2, g, BLOCK)
        if TOLD:
            block -= x_blocks + y_blocks
            if block > 0:
                _times(doffsets, doffsets_out, block - 1, offsets_length, g, BLOCK)


TIMES_BLOCK = 1024


def loss_backward(
    grad: Tensor, made: SigmoidLoss, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One launch for all of them."""
    dx, dy, dscalars, doffsets = made[1:]
    stored = launch.workspace_dtype(dtype, dx.device)
    out = [torch.empty_like(d, dtype=stored) for d in (dx, dy)]
    out += [torch.empty_like(dscalars), torch.empty_like(doffsets)]
    told = len(doffsets) > 0
    programs = 1 + sum(triton.cdiv(d.numel(), TIMES_BLOCK) for d in (dx, dy, doffsets))
    times_kernel[(programs,)](
        grad, made.loss, dx, dy, dscalars, doffsets if told else None,
        *out[:3], out[3] if told else None, dx.numel(), dy.numel(), len(doffsets),
        TOLD=told, BLOCK=TIMES_BLOCK,
    )  # fmt: skip
    return out[0].to(dtype), out[1].to(dtype), out[2], out[3]
