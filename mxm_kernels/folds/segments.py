"""Sums over the positive pairs of each row, and back: adjoint pairs of segment operations.

A vector over the P positive pairs, sorted by owner, is cut into segments by ``offsets``.
PyTorch differentiates indexing by scattering with atomic additions on a GPU; here a gather
is differentiated by a segment sum and a segment sum by a gather, so two runs give the
same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Segments(NamedTuple):
    """A cut of P sorted pairs into one segment per row."""

    offsets: Tensor  # (rows + 1,) int64
    owners: Tensor  # (P,) int64


def _reduce(values: Tensor, offsets: Tensor, how: str, initial: float) -> Tensor:
    return torch.segment_reduce(values, how, offsets=offsets, initial=initial, unsafe=True)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets, owners):
        ctx.save_for_backward(offsets)
        return values.index_select(0, owners)

    @staticmethod
    def backward(ctx, grad):
        (offsets,) = ctx.saved_tensors
        return _reduce(grad.contiguous(), offsets, "sum", 0.0), None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets, owners):
        ctx.save_for_backward(owners)
        return _reduce(values, offsets, "sum", 0.0)

    @staticmethod
    def backward(ctx, grad):
        (owners,) = ctx.saved_tensors
        return grad.index_select(0, owners), None, None


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, offsets, owners):
        top = _reduce(values, offsets, "max", -torch.inf)
        share = (values - top.index_select(0, owners)).exp()
        total = _reduce(share, offsets, "sum", 0.0)
        # Not from the rounded result: exp(values - result) is off by its last place, times it.
        ctx.save_for_backward(share, total, owners)
        return torch.where(total == 0, -torch.inf, top + total.log())

    @staticmethod
    def backward(ctx, grad):
        share, total, owners = ctx.saved_tensors
        return share * (grad.index_select(0, owners) / total.index_select(0, owners)), None, None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, places):
        ctx.save_for_backward(places)
        ctx.length = values.shape[0]
        return values.index_select(0, places)

    @staticmethod
    def backward(ctx, grad):
        (places,) = ctx.saved_tensors
        return grad.new_zeros(ctx.length).index_copy_(0, places, grad), None


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, order, inverse):
        ctx.save_for_backward(inverse)
        return values.index_select(0, order)

    @staticmethod
    def backward(ctx, grad):
        (inverse,) = ctx.saved_tensors
        return grad.index_select(0, inverse), None, None


def spread(rows: Tensor, segments: Segments) -> Tensor:
    """(rows,) -> (P,): give every pair the value of the row that owns it."""
    return _Spread.apply(rows, *segments)


def segment_sum(pairs: Tensor, segments: Segments) -> Tensor:
    """(P,) -> (rows,): sum over the pairs of each row; 0 for a row without one."""
    return _Sum.apply(pairs, *segments)


def segment_logsumexp(pairs: Tensor, segments: Segments) -> Tensor:
    """(P,) -> (rows,): log-sum-exp over the pairs of each row; -inf for a row without one."""
    return _LogSumExp.apply(pairs, *segments)


def segment_max(pairs: Tensor, segments: Segments) -> Tensor:
    """(P,) -> (rows,): greatest of the pairs of each row; -inf for a row without one."""
    return _reduce(pairs, segments.offsets, "max", -torch.inf)


def permute(pairs: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """(P,) -> (P,): ``pairs[order]``, where ``inverse`` undoes ``order``."""
    return _Permute.apply(pairs, order, inverse)


def take(pairs: Tensor, places: Tensor) -> Tensor:
    """(P,) -> (Q,): ``pairs[places]``, where no place occurs twice."""
    return _Take.apply(pairs, places)
