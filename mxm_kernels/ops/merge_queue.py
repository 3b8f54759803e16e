"""The operator that adds a queue's columns to the sums of the rows; see ``backends/queues.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.row_interface import QueuePlace, RowSums
from mxm_kernels.ops.library import is_differentiated_once, library, register_autograd, schema

_ROWS, _QUEUE = schema("n", "u", "t"), schema("queue_n", "queue_u", "queue_t")
library.define(
    f"merge_queue({_ROWS}, {_QUEUE}, Tensor total, SymInt first, SymInt count, str backend) -> "
    "(Tensor, Tensor, Tensor)"
)
library.define(
    f"merge_queue_backward(Tensor dn, Tensor du, {_ROWS}, {_QUEUE}, SymInt first, SymInt count, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor)"
)


def merge_queue(
    rows: RowSums, queue: RowSums, total: Tensor, place: QueuePlace, backend: str
) -> RowSums:
    """(R,) each: the sums of all rows, differentiable in n and u of the rows and of the queue."""
    return RowSums(*torch.ops.mxm_kernels.merge_queue(*rows, *queue, total, *place, backend))


@torch.library.impl(library, "merge_queue", "CompositeExplicitAutograd")
def _forward(*arguments):
    *sums, total, first, count, backend = arguments
    rows, queue = RowSums(*sums[:3]), RowSums(*sums[3:])
    with torch.no_grad():
        run = backends.load(backend).merge_queue
        return tuple(run(rows, queue, total, QueuePlace(first, count)))


@torch.library.register_fake("mxm_kernels::merge_queue", lib=library)
def _fake_forward(*arguments):
    return tuple(map(torch.empty_like, arguments[:3]))


@torch.library.impl(library, "merge_queue_backward", "CompositeExplicitAutograd")
def _backward(*arguments):
    dn, du, *sums, first, count, backend = arguments
    rows, queue = RowSums(*sums[:3]), RowSums(*sums[3:])
    with torch.no_grad():
        run = backends.load(backend).merge_queue_backward
        place = QueuePlace(first, count)
        return tuple(run(dn.contiguous(), du.contiguous(), rows, queue, place))


@torch.library.register_fake("mxm_kernels::merge_queue_backward", lib=library)
def _fake_backward(dn, du, n, u, t, queue_n, queue_u, queue_t, *rest):
    return tuple(torch.empty_like(v) for v in (n, u, queue_n, queue_u))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.rest = inputs[7:]


def _differentiate(ctx, dn, du, _):
    saved = ctx.saved_tensors  # once: hooks compute or copy them at every access
    n, _, t = saved[:3]
    dn = torch.zeros_like(n) if dn is None else dn
    du = torch.zeros_like(t) if du is None else du
    own_n, own_u, queue_n, queue_u = torch.ops.mxm_kernels.merge_queue_backward(
        dn, du, *saved, *ctx.rest
    )
    return own_n, own_u, None, queue_n, queue_u, None, *[None] * 4


register_autograd("merge_queue", _differentiate, _setup_context)
is_differentiated_once("mxm_kernels::merge_queue_backward")
