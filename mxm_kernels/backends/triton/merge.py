"""The lines of both scratches into the statistics, in a fixed order, in one launch.

The first programs take the rows, the others the columns. The columns of a span are complete with
it; the rows' partial statistics are carried to the next span until the last. ``statistics`` says
what the fields of a line are, ``told_sums`` what they are under rules (TOLD).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import Statistics
from mxm_kernels.backends.tiles import Span
from mxm_kernels.backends.triton.exponentials import LN2

BLOCK = {"BLOCK": 32, "LINES": 64}


@triton.jit
def _field(state, field, length, at, known):
    return tl.load(state + field * length + at, mask=known, other=0.0)


@triton.jit
def _carried(state, length, at, known, FIELDS: tl.constexpr):
    """Partial statistics that an earlier span left; the neutral ones where not ``known``."""
    top = tl.load(state + at, mask=known, other=float("-inf"))
    total = _field(state, 1, length, at, known)
    weighted = total
    if FIELDS > 2:
        weighted = _field(state, 2, length, at, known)
    own = total
    if FIELDS == 4:
        own = _field(state, 3, length, at, known)
    return top, total, weighted, own


@triton.jit
def _joined(
    state, lines, length, index, inside, partial,
    LINE: tl.constexpr, FIELDS: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """``partial`` and all lines together, LINES at a time; LINE fields from one to the next."""
    top, total, weighted, own = partial
    for start in range(0, lines, LINES):
        line = start + tl.arange(0, LINES)
        known = (line < lines)[:, None] & inside[None, :]
        at = (line.to(tl.int64) * LINE * length)[:, None] + index[None, :]
        tops = tl.load(state + at, mask=known, other=float("-inf"))
        new = tl.maximum(top, tl.max(tops, 0))
        safe = tl.where(new == float("-inf"), 0.0, new)
        before, factor = tl.exp2(top - safe), tl.exp2(tops - safe[None, :])
        total = total * before + tl.sum(_field(state, 1, length, at, known) * factor, 0)
        if FIELDS > 2:
            weighted = weighted * before + tl.sum(_field(state, 2, length, at, known) * factor, 0)
        if FIELDS == 4:
            own = own * before + tl.sum(_field(state, 3, length, at, known) * factor, 0)
        top = new
    return top, total, weighted, own


@triton.jit
def _added(
    state, lines, length, index, inside, total,
    FIELD: tl.constexpr, LINE: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """``total`` and a field of all lines, LINES at a time."""
    for start in range(0, lines, LINES):
        line = start + tl.arange(0, LINES)
        known = (line < lines)[:, None] & inside[None, :]
        at = (line.to(tl.int64) * LINE * length)[:, None] + index[None, :]
        total += tl.sum(_field(state, FIELD, length, at, known), 0)
    return total


@triton.jit
def _store_carried(state, length, index, inside, partial, FIELDS: tl.constexpr):
    tl.store(state + index, partial[0], mask=inside)
    tl.store(state + length + index, partial[1], mask=inside)
    if FIELDS > 2:
        tl.store(state + 2 * length + index, partial[2], mask=inside)
    if FIELDS == 4:
        tl.store(state + 3 * length + index, partial[3], mask=inside)


@triton.jit
def _merge_told(
    state, carried, count, removed, row, lines, length, index, inside, known, last,
    LINE: tl.constexpr, T_FIELDS: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """How many negatives remain, and where T is summed the removed pairs."""
    own = _field(carried, 2, length, index, known)
    own = _added(state, lines, length, index, inside, own, 2, LINE, LINES)
    if last > 0:
        tl.store(count + row, own, mask=inside)
    else:
        tl.store(carried + 2 * length + index, own, mask=inside)
    if T_FIELDS:
        state += (3 + T_FIELDS) * length
        carried += (3 + T_FIELDS) * length
        X = _carried(carried, length, index, known, 2)
        X = _joined(state, lines, length, index, inside, X, LINE, 2, LINES)
        if last > 0:
            tl.store(removed + row, (X[0] + tl.log2(X[1])) * LN2, mask=inside)
        else:
            _store_carried(carried, length, index, inside, X, 2)


@triton.jit
def _merge_block(
    state, carried, units, teacher_units, n, mean, neg_sum, u, t, m, h, count, removed,
    block, lines, first, length, again, last,
    TEACHER: tl.constexpr, T_FIELDS: tl.constexpr, NEG_SUM: tl.constexpr,
    TOLD: tl.constexpr, DIAGNOSTICS: tl.constexpr, BLOCK: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """A block of the ``length`` rows from ``first`` on.

    ``again``: whether ``carried`` has what earlier spans left. ``last``: whether no span follows.
    """
    LINE: tl.constexpr = 3 + T_FIELDS + NEG_SUM + 2 * (TOLD and T_FIELDS > 0)
    OF_S: tl.constexpr = 2 if TOLD else 3
    index = block * BLOCK + tl.arange(0, BLOCK)
    inside = index < length
    known = inside & (again > 0)
    S = _carried(carried, length, index, known, OF_S)
    S = _joined(state, lines, length, index, inside, S, LINE, OF_S, LINES)
    T = S
    if T_FIELDS:
        T = _carried(carried + 3 * length, length, index, known, T_FIELDS)
        T_state = state + 3 * length
        T = _joined(T_state, lines, length, index, inside, T, LINE, T_FIELDS, LINES)
    row = first + index
    if last > 0:
        # 0, or NaN where a feature is not finite: a sum may show no trace of it.
        fault = tl.load(units + row, mask=inside, other=0.0) * 0.0
        if TOLD and TEACHER:  # what is not finite would remove no pair
            fault += tl.load(teacher_units + row, mask=inside, other=0.0) * 0.0
        n_value = (S[0] + tl.log2(S[1])) * LN2 + fault
        tl.store(n + row, n_value, mask=inside)
        # A row without a negative has sums of 0.
        if TOLD:
            tl.store(mean + row, fault, mask=inside)  # which is not summed, and not read
        else:
            tl.store(mean + row, tl.where(S[1] == 0, fault, S[2] / S[1] + fault), mask=inside)
        if DIAGNOSTICS:
            top = tl.where(n_value != n_value, n_value, S[0] * LN2)
            tl.store(m + row, top, mask=inside)
        if T_FIELDS:
            fault = tl.load(teacher_units + row, mask=inside, other=0.0) * 0.0
            t_value = (T[0] + tl.log2(T[1])) * LN2 + fault
            tl.store(t + row, t_value, mask=inside)
            tl.store(u + row, T[2] / T[1] + fault, mask=inside)
            if DIAGNOSTICS:
                entropy = t_value - T[3] / T[1]
                # Rounding may pass 0.
                tl.store(h + row, tl.where(entropy < 0, 0.0, entropy), mask=inside)
    else:
        _store_carried(carried, length, index, inside, S, OF_S)
        if T_FIELDS:
            _store_carried(carried + 3 * length, length, index, inside, T, T_FIELDS)
    if TOLD:
        _merge_told(
            state, carried, count, removed, row, lines, length, index, inside, known, last,
            LINE, T_FIELDS, LINES,
        )  # fmt: skip
    if NEG_SUM:
        own = _field(carried, LINE - 1, length, index, known)
        own = _added(state, lines, length, index, inside, own, LINE - 1, LINE, LINES)
        if last > 0:
            fault = tl.load(units + row, mask=inside, other=0.0) * 0.0
            tl.store(neg_sum + row, own + fault, mask=inside)
        else:
            tl.store(carried + (LINE - 1) * length + index, own, mask=inside)


@triton.jit(do_not_specialize=["M", "N", "row_lines", "col_lines", "first", "width", "last"])
def merge_kernel(
    units,  # (1 or 2, M + N)
    row_state,  # (row_lines, FIELDS, M)
    col_state,  # (col_lines, FIELDS, width)
    carried,  # (FIELDS, M) in and out, where there are several spans
    n,  # (M + N,) out
    mean,  # (M + N,) out, of S by softmax over the negatives
    neg_sum,  # (M + N,) out, of S over the negatives, if NEG_SUM
    u,  # (M + N,) out, with a teacher
    t,  # (M + N,) out, with a teacher
    m,  # (M + N,) out, for diagnostics
    h,  # (M + N,) out, for diagnostics with a teacher
    told,  # (M + N,) out twice, negatives that remain and log-sum-exp of removed pairs, if TOLD
    M,
    N,
    row_lines,
    col_lines,
    first,  # first column of the span
    width,  # and how many it has
    last,  # whether it is the last span
    TEACHER: tl.constexpr,
    T_FIELDS: tl.constexpr,
    NEG_SUM: tl.constexpr,
    TOLD: tl.constexpr,
    DIAGNOSTICS: tl.constexpr,
    BLOCK: tl.constexpr,
    LINES: tl.constexpr,
):
    """Merge both scratches of a span."""
    count, removed = n, n
    if TOLD:
        count, removed = told[0], told[1]
    program, of_teacher = tl.program_id(0), units + M + N
    row_blocks = tl.cdiv(M, BLOCK)
    if program < row_blocks:
        _merge_block(
            row_state, carried, units, of_teacher, n, mean, neg_sum, u, t, m, h, count, removed,
            program, row_lines, 0, M, first, last,
            TEACHER, T_FIELDS, NEG_SUM, TOLD, DIAGNOSTICS, BLOCK, LINES,
        )  # fmt: skip
    else:
        _merge_block(
            col_state, carried, units + M, of_teacher + M,
            n + M, mean + M, neg_sum + M, u + M, t + M, m + M, h + M, count + M, removed + M,
            program - row_blocks, col_lines, first, width, 0, 1,
            TEACHER, T_FIELDS, NEG_SUM, TOLD, DIAGNOSTICS, BLOCK, LINES,
        )  # fmt: skip


def merge(
    made: Statistics,
    units: Tensor,
    row_state: Tensor,
    col_state: Tensor,
    carried: Tensor,
    span: Span,
    cols: int,
    terms: dict[str, int],
) -> None:
    """Merge the scratches of the columns ``span``, of ``cols``, into ``made``.

    ``terms`` are the constexpr arguments that say what the fields of a line are.
    """
    rows, width = row_state.shape[2], col_state.shape[2]
    blocks = triton.cdiv(rows, BLOCK["BLOCK"]) + triton.cdiv(width, BLOCK["BLOCK"])
    told = None
    if terms["TOLD"]:  # what is not wanted is written all the same
        wanted = made.num_negatives, made.excluded_lse
        told = tuple(v if len(v) else torch.empty_like(made.neg_lse) for v in wanted)
    merge_kernel[(blocks,)](
        units, row_state, col_state, carried, made.neg_lse, made.neg_mean, made.neg_sum,
        made.teacher_mean, made.teacher_lse, made.hardest, made.entropy, told,
        rows, cols, row_state.shape[0], col_state.shape[0], span[0], width, int(span[1] == cols),
        **terms, DIAGNOSTICS=len(made.hardest) > 0, **BLOCK,
    )  # fmt: skip
