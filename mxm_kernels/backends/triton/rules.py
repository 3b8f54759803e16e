"""The rules of a problem in a tile: offsets of S and T, and pairs that are removed.

A kernel takes the rules as one tuple of five vectors of the M + N rows, images first: offsets of
S, offsets of T, ``exclude_ids``, ``within_ids`` and thresholds. ``backends/rules.py`` defines what
they say. The thresholds are compared with the teacher's products T of the tile, before its scale,
where the problem has a teacher; so T is multiplied before S is summed. The ids remove a pair for
its image and its text alike, a threshold for one of them.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import Problem

# Thresholds are at most this, so that an infinite product is above each.
FINITE = tl.constexpr(3e38)

Rules = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def rules_of(p: Problem) -> Rules | None:
    """The five vectors as the kernels take them; None of a problem without a rule.

    A vector that is not given has values of no effect. Vectors of the same values are one.
    """
    if not p.told:
        return None
    rows = len(p.x) + len(p.y)
    offsets, teacher_offsets, exclude, within, thresholds = p.rules
    if offsets is None:
        offsets = p.scale.new_zeros(rows)
    if teacher_offsets is None:  # not read where T is not summed
        given = p.logit_offsets is not None and p.has_soft
        teacher_offsets = p.scale.new_zeros(rows) if given else offsets
    if exclude is None or within is None:
        nothing = p.owners.new_full((rows,), -1)
        exclude = nothing if exclude is None else exclude
        within = nothing if within is None else within
    if thresholds is None:  # not read without a teacher
        thresholds = p.scale.new_full((rows,), float("inf")) if p.has_teacher else p.scale
    return offsets, teacher_offsets, exclude, within, thresholds


@triton.jit
def both_sides(vector, row, col, M):
    """Numbers of the rows (BLOCK_M, 1) and of the columns (1, BLOCK_N) of a tile."""
    return tl.load(vector + row)[:, None], tl.load(vector + M + col)[None, :]


@triton.jit
def removed_by_ids(rules, row, col, M):
    """Whether the ids remove the pairs of a tile, positives left aside."""
    of_row, of_col = both_sides(rules[2], row, col, M)
    removed = (of_row == of_col) & (of_row >= 0)
    of_row, of_col = both_sides(rules[3], row, col, M)
    return removed | ((of_row != of_col) & (of_row >= 0) & (of_col >= 0))


@triton.jit
def same_groups(image_groups, text_groups, row, col):
    """Whether the pairs of a tile have one group."""
    return tl.load(image_groups + row)[:, None] == tl.load(text_groups + col)[None, :]
