"""The rows after the statistics: losses and their derivatives in one launch.

One kernel serves both directions: its first programs take the rows, the others the columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mxm_kernels.backends.interface import (
    Form,
    Problem,
    RowLosses,
    RowProblem,
    Shares,
    Sides,
    Statistics,
    Upstream,
)
from mxm_kernels.backends.triton.row_forms import mixed_block
from mxm_kernels.backends.triton.tile import teacher_arguments

BLOCK = 128


@triton.jit
def _share(share, weights, weighted, row):
    """What the loss of each lane's row is multiplied with; ``weighted`` rows have weights, or 0."""
    return share * tl.load(weights + row, mask=row < weighted, other=1.0)


_ROW_NUMBERS = ["rows", "hard", "soft", "hard_weighted", "soft_weighted", "columns", "prior"]


@triton.jit(do_not_specialize=_ROW_NUMBERS)
def mixed_rows_kernel(
    n,  # (rows,)
    S,  # (pairs,)
    u,  # (rows,)
    weights,  # (pairs,)
    offsets,  # (rows + 1,) int64
    hard_weights,  # (rows,), not read unless hard_weighted
    soft_weights,  # (rows,), not read unless soft_weighted
    scale,  # (), not read but by "debiased"
    losses,  # (rows,) out
    dn,  # (rows,) out
    dS,  # (pairs,) out
    dscale,  # (rows,) out, of "debiased"
    rows,
    hard,
    soft,
    hard_weighted,
    soft_weighted,
    columns,
    prior,
    FORM: tl.constexpr,
    SOFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The rows of one direction."""
    block = tl.program_id(0)
    row = block * BLOCK + tl.arange(0, BLOCK)
    hard = _share(hard, hard_weights, hard_weighted, row)
    soft = _share(soft, soft_weights, soft_weighted, row)
    s = 0.0
    if FORM == "debiased":
        s = tl.load(scale)
    loss, by_scale = mixed_block(
        block, n, S, u, weights, offsets, None, dn, dS,
        rows, hard, soft, s, columns, prior, FORM, SOFT, BLOCK,
    )  # fmt: skip
    tl.store(losses + row, loss, mask=row < rows)
    if FORM == "debiased":
        tl.store(dscale + row, by_scale, mask=row < rows)


@triton.jit
def _mixed_side(
    block, n, S, u, weights, offsets, slots, hard_weights, soft_weights, dn, dS, du,
    rows, hard, soft, weighted, scale, columns, prior,
    FORM: tl.constexpr, SOFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of the losses of a block of rows of either direction and by the scale, and du."""
    row = block * BLOCK + tl.arange(0, BLOCK)
    hard = _share(hard, hard_weights, weighted, row)
    soft = _share(soft, soft_weights, weighted, row)
    if SOFT:
        tl.store(du + row, -soft, mask=row < rows)
    loss, by_scale = mixed_block(
        block, n, S, u, weights, offsets, slots, dn, dS,
        rows, hard, soft, scale, columns, prior, FORM, SOFT, BLOCK,
    )  # fmt: skip
    inside = row < rows
    return tl.sum(tl.where(inside, loss, 0.0), axis=0), tl.sum(
        tl.where(inside, by_scale, 0.0), axis=0
    )


_NUMBERS = ["rows", "cols", "pairs", "hard_rows", "soft_rows", "hard_cols", "soft_cols", "prior"]
_WEIGHTED = ["rows_weighted", "cols_weighted"]


@triton.jit(do_not_specialize=_NUMBERS + _WEIGHTED)
def mixed_loss_kernel(
    n_rows,  # (rows,)
    n_cols,  # (cols,)
    S,  # (pairs,)
    u_rows,  # (rows,)
    u_cols,  # (cols,)
    row_weights,  # (pairs,)
    col_weights,  # (pairs,) in text-major order
    image_offsets,  # (rows + 1,) int64
    text_offsets,  # (cols + 1,) int64
    text_slots,  # (pairs,) int64
    row_hard_weights,  # (rows,), not read unless rows_weighted
    row_soft_weights,  # (rows,)
    col_hard_weights,  # (cols,), not read unless cols_weighted
    col_soft_weights,  # (cols,)
    scale,  # ()
    teacher_scale,  # ()
    losses,  # (programs,) out, after them those by the scale, of "debiased"
    dn_rows,  # (rows,) out
    dn_cols,  # (cols,) out
    dS,  # (2, pairs) out, of the rows and of the columns, in slot order
    du_rows,  # (rows,) out
    du_cols,  # (cols,) out
    rows,
    cols,
    pairs,
    hard_rows,
    soft_rows,
    hard_cols,
    soft_cols,
    rows_weighted,
    cols_weighted,
    prior,
    FORM: tl.constexpr,
    SOFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Both directions: sums of the losses by block, and the gradient by the statistics."""
    # The host does not wait to look at the scales: what is not positive shows as NaN.
    s = tl.load(scale)
    positive = (s > 0) & (tl.load(teacher_scale) > 0)
    sign = tl.where(positive, 1.0, float("nan"))
    hard_rows, soft_rows = hard_rows * sign, soft_rows * sign
    hard_cols, soft_cols = hard_cols * sign, soft_cols * sign
    program = tl.program_id(0)
    row_blocks = tl.cdiv(rows, BLOCK)
    if program < row_blocks:
        loss, by_scale = _mixed_side(
            program, n_rows, S, u_rows, row_weights, image_offsets, None,
            row_hard_weights, row_soft_weights, dn_rows, dS, du_rows,
            rows, hard_rows, soft_rows, rows_weighted, s, cols, prior, FORM, SOFT, BLOCK,
        )  # fmt: skip
    else:
        loss, by_scale = _mixed_side(
            program - row_blocks, n_cols, S, u_cols, col_weights, text_offsets, text_slots,
            col_hard_weights, col_soft_weights, dn_cols, dS + pairs, du_cols,
            cols, hard_cols, soft_cols, cols_weighted, s, rows, prior, FORM, SOFT, BLOCK,
        )  # fmt: skip
    tl.store(losses + program, loss)
    if FORM == "debiased":
        tl.store(losses + tl.num_programs(0) + program, by_scale)


def mixed_rows(p: RowProblem, form: Form, hard: float, soft: float, columns: int) -> RowLosses:
    """Losses of the rows and their derivatives in n, S and the scale."""
    rows = p.n.shape[0]
    losses, dn, dS = torch.empty_like(p.n), torch.empty_like(p.n), torch.empty_like(p.S)
    out = RowLosses(losses, dn, dS, torch.empty_like(p.n) if form.name == "debiased" else None)
    mixed_rows_kernel[(triton.cdiv(rows, BLOCK),)](
        p.n, p.S, p.u if soft else p.n, p.weights, p.offsets, p.hard_weights, p.soft_weights,
        p.scale, *out[:3], losses if out.dscale is None else out.dscale,
        rows, hard, soft, len(p.hard_weights), len(p.soft_weights), columns, form.prior,
        FORM=form.name, SOFT=soft != 0, BLOCK=BLOCK,
    )  # fmt: skip
    return out


def mixed_loss(
    problem: Problem,
    statistics: Statistics,
    sides: Sides,
    form: Form,
    shares: Shares,
) -> tuple[Tensor, Upstream, Tensor | None]:
    """The loss of both directions and its gradient by the statistics and the scale."""
    s, rows, cols, pairs = statistics, len(problem.x), len(problem.y), len(statistics.positives)
    *_, teacher_scale = teacher_arguments(problem)
    row_shares = sides[-4:]
    programs = triton.cdiv(rows, BLOCK) + triton.cdiv(cols, BLOCK)
    debiased = form.name == "debiased"
    losses = s.n_rows.new_empty((2 if debiased else 1, programs))
    upstream = Upstream(
        torch.empty_like(s.n_rows),
        torch.empty_like(s.n_cols),
        s.positives.new_empty((2, pairs)),
        torch.empty_like(s.u_rows),
        torch.empty_like(s.u_cols),
    )
    mixed_loss_kernel[(programs,)](
        s.n_rows, s.n_cols, s.positives, s.u_rows, s.u_cols,
        sides.row_weights, sides.col_weights, problem.image_offsets, sides.text_offsets,
        sides.text_slots, *row_shares, problem.scale, teacher_scale, losses, *upstream,
        rows, cols, pairs, *shares, len(row_shares[0]), len(row_shares[2]), form.prior,
        FORM=form.name, SOFT=problem.has_teacher, BLOCK=BLOCK,
    )  # fmt: skip
    return losses[0].sum(), upstream, losses[1].sum() if debiased else None
