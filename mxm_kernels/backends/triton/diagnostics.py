"""The sums that ``Diagnostics`` are made of: one launch, and one that adds up its blocks.

A row stands in each lane and walks its own positives. ``backends/diagnostics.py`` defines them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.row_interface import DiagnosedRows

BLOCK = 128


@triton.jit
def _positives(S, first, count, BLOCK: tl.constexpr):
    """For each lane's row: its greatest positive, which may leave out NaN, and their sum."""
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(tl.max(count, axis=0)):
        here = k < count
        value = tl.load(S + first + k, mask=here, other=float("-inf"))
        top = tl.maximum(top, value)
        total += tl.where(here, value, 0.0)
    return top, total


@triton.jit
def _store(sums, field, values, counts, fault, side, FIELDS: tl.constexpr):
    """Sum of the values of a side's rows, and how many numbers it is of; 0 leaves a row out."""
    total = tl.sum(tl.where(side & (counts > 0), values, 0.0), 0)
    tl.store(sums + field, total + fault)
    tl.store(sums + FIELDS + field, tl.sum(tl.where(side, counts, 0.0), 0))


@triton.jit(do_not_specialize=["rows", "images", "scale_stride"])
def diagnostic_sums_kernel(
    n,  # (rows,)
    S,  # (positives,)
    hardest,  # (rows,)
    entropy,  # (rows,), not read without TEACHER
    scale,  # (rows,) with ``scale_stride``
    offsets,  # (rows + 1,) int64
    block_sums,  # (blocks, 2, FIELDS) out
    rows,
    images,
    scale_stride,
    TEACHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sums of a block of rows, which may have images and texts."""
    FIELDS: tl.constexpr = 5 + 2 * TEACHER
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    image, text = row < images, inside & (row >= images)
    sums = block_sums + tl.program_id(0) * (2 * FIELDS)
    first = tl.load(offsets + row, mask=inside, other=0)
    count = tl.load(offsets + row + 1, mask=inside, other=0) - first
    N = tl.load(n + row, mask=inside, other=float("-inf"))
    worst = tl.load(hardest + row, mask=inside, other=float("-inf"))
    s = tl.load(scale + row * scale_stride, mask=inside, other=1.0)
    best, total = _positives(S, first, count, BLOCK)
    negative = float("-inf") != N  # NaN too
    fault = tl.sum(tl.where(negative, N * 0.0, 0.0) + total * 0.0, 0)  # 0 or NaN
    hit, has_positive = (best > worst).to(tl.float32), (count > 0).to(tl.float32)
    _store(sums, 0, hit, has_positive, fault, image, FIELDS)
    _store(sums, 1, hit, has_positive, fault, text, FIELDS)
    _store(sums, 2, total / s, count.to(tl.float32), fault, inside, FIELDS)
    has_negative = negative.to(tl.float32)
    _store(sums, 3, worst / s, has_negative, fault, image, FIELDS)
    _store(sums, 4, worst / s, has_negative, fault, text, FIELDS)
    if TEACHER:
        value = tl.load(entropy + row, mask=inside, other=0.0)
        every, fault = inside.to(tl.float32), tl.sum(value * 0.0, 0)
        _store(sums, 5, value, every, fault, image, FIELDS)
        _store(sums, 6, value, every, fault, text, FIELDS)


def diagnostic_sums(rows: DiagnosedRows) -> Tensor:
    """(2, F) sums over the rows."""
    n, length, teacher = rows.neg_lse, len(rows.neg_lse), rows.entropy is not None
    scale, blocks = rows.scale.expand(length), triton.cdiv(length, BLOCK)
    block_sums = n.new_empty((blocks, 2, 7 if teacher else 5))
    diagnostic_sums_kernel[(blocks,)](
        n, rows.positives, rows.hardest, rows.entropy if teacher else n, scale, rows.offsets,
        block_sums, length, rows.images, scale.stride(0), TEACHER=teacher, BLOCK=BLOCK,
    )  # fmt: skip
    return block_sums.sum(0)
