"""The filter: from which similarity of the teacher on a pair is no negative.

With c_ij = <X_i, Y_j> of the teacher's features, C_i the mean of c_ik over the positives k of row i
and m = ``filter_margin``, pair (i, j) is no negative of row i where

    c_ij > C_i - m + 1e-4            or, relative,            c_ij > C_i - |C_i| m + 1e-4

A row without a positive filters nothing. The operator compares products of the features that it is
given. Their unit is not that of c where float8 or a scale for each row has changed the features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels.core.batch import Batch
from mxm_kernels.core.symbols import as_operand
from mxm_kernels.folds.segments import segment_sum
from mxm_kernels.ops.pair_products import pair_products

# So that exact duplicates of a positive stay negatives, however their products are rounded: without
# it 41 % of them were filtered in float32.
SLACK = 1e-4


def similarity_thresholds(b: Batch, x: Tensor, y: Tensor, unit: Tensor) -> Tensor:
    """(R,) thresholds of this process's rows, as similarities, without the slack.

    ``x`` are the teacher's features of this process's images, ``y`` of the texts of all ranks;
    products of theirs are similarities times ``unit``, () or (R,).
    """
    if b.rules.thresholds is not None:
        return b.rules.thresholds
    margin = b.options.filter_margin
    assert margin is not None
    with torch.no_grad():
        counts = b.segments.offsets.diff()
        mean = segment_sum(_of_positives(b, x, y), b.segments) / counts.clamp(min=1) / unit
        less = as_operand(margin, mean)
        if b.options.filter_strategy == "relative":
            less = mean.abs() * less
        return (mean - less).masked_fill(counts == 0, torch.inf)


def _of_positives(b: Batch, x: Tensor, y: Tensor) -> Tensor:
    """(L,) products of the positives of this process's rows."""
    if b.shard is None:
        t = b.tables
        slots = pair_products(x, y, t.pair_images, t.pair_texts, b.dtype)
        return torch.cat([slots, slots[t.text_slots]])
    own = b.shard.row_tables
    slots = pair_products(x, y, own.owners[: len(own.pair_texts)], own.pair_texts, b.dtype)
    return torch.cat([slots, b.shard.pairs_to_columns(slots)])


def fault_of(b: Batch, x: Tensor, y: Tensor, thresholds: Tensor) -> Tensor:
    """() 0, or NaN where the teacher's features or the thresholds are: no comparison shows it."""
    with torch.no_grad():
        total = x.sum(dtype=b.dtype) + y.sum(dtype=b.dtype)
        return (total + thresholds.masked_fill(thresholds.isinf(), 0).sum()) * 0
