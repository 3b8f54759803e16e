"""The one differentiable operator: features and groups in, O(M + N + P) statistics out.

    (x, y, teacher x, teacher y, s, t, folds) -> (n, n', S_pos, u, u')

besides t and t', which backward reads, and, where they are asked for, the diagnostics m and h,
which have no gradient (symbols as in ``backends/problem.py``).

Registered with torch.library, so it has fake kernels, works inside torch.compile and is
checked by torch.library.opcheck. Its backward, with E = exp and every exponent <= 0:

    dS_ij = dn_i E(S_ij - n_i) + dn'_j E(S_ij - n'_j)        where (i, j) is a negative pair
            dS_pos                                           where it is a positive pair
            + du_i E(T_ij - t_i) + du'_j E(T_ij - t'_j)      everywhere

    dx = s dS y          dy = s dS^T x          ds = sum_ij dS_ij S_ij / s

It saves its inputs and the statistics, nothing of size M x N; where a small batch makes it
cheaper, a backend keeps S and T up to a size that is a constant of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.problem import Gradients, Needs, Problem, Statistics, Upstream
from mxm_kernels.fold_tables import FoldTables, RowTables
from mxm_kernels.segments import permute

TABLES = (
    "Tensor image_groups, Tensor text_groups, Tensor image_offsets, Tensor pair_images, "
    "Tensor pair_texts"
)
INPUTS = (
    "Tensor x, Tensor y, Tensor? teacher_x, Tensor? teacher_y, Tensor scale, "
    f"Tensor? teacher_scale, {TABLES}"
)
STATISTICS = (
    "Tensor n_rows, Tensor n_cols, Tensor positives, Tensor u_rows, Tensor u_cols, "
    "Tensor t_rows, Tensor t_cols"
)
UPSTREAM = "Tensor dn_rows, Tensor dn_cols, Tensor dpositives, Tensor du_rows, Tensor du_cols"

library = torch.library.Library("mxm_kernels", "DEF")
library.define(
    f"statistics({INPUTS}, str backend, bool diagnostics=False) -> ({STATISTICS}, "
    "Tensor m_rows, Tensor m_cols, Tensor h_rows, Tensor h_cols, Tensor kept)"
)
library.define(
    f"statistics_backward({INPUTS}, {STATISTICS}, Tensor kept, {UPSTREAM}, bool[] needs, "
    "str backend) -> (Tensor, Tensor, Tensor)"
)
_PROBLEM = len(Problem._fields)
_SAVED = 8  # statistics that backward reads, what was kept included


def statistics(
    x: Tensor,
    y: Tensor,
    teacher: tuple[Tensor, Tensor] | None,
    scale: Tensor,
    teacher_scale: Tensor | None,
    tables: FoldTables | RowTables,
    backend: str,
    diagnostics: bool = False,
) -> Statistics:
    """Run the operator: x (M, D), y (N, D), teacher features alike, 0-d scales.

    Returns the statistics in float32 (float64 for float64 features), differentiable in x, y
    and scale. ``diagnostics`` come from the same pass without another product: m_rows, m_cols
    and, with a teacher, h_rows, h_cols, which are empty otherwise.
    """
    problem = make_problem(x, y, teacher, scale, teacher_scale, tables)
    if not len(x) or not len(y):  # a shard of a batch may lack a modality
        return _of_no_rows(problem, diagnostics)
    return Statistics(*torch.ops.mxm_kernels.statistics(*problem, backend, diagnostics))


class OneSide(NamedTuple):
    """The statistics that one direction reads: those of the rows, or those of the columns."""

    n: Tensor  # (rows,)
    S: Tensor  # (P,) positives, sorted by row
    u: Tensor  # (rows,)
    t: Tensor  # (rows,)
    m: Tensor  # (rows,)
    h: Tensor  # (rows,)


def of_rows(s: Statistics) -> OneSide:
    """The statistics of the rows."""
    return OneSide(s.n_rows, s.positives, s.u_rows, s.t_rows, s.m_rows, s.h_rows)


def of_columns(s: Statistics, tables: FoldTables) -> OneSide:
    """The statistics of the columns, with the positives column after column."""
    S = permute(s.positives, tables.text_slots, tables.slot_places)
    return OneSide(s.n_cols, S, s.u_cols, s.t_cols, s.m_cols, s.h_cols)


def statistics_backward(
    x: Tensor,
    y: Tensor,
    teacher: tuple[Tensor, Tensor] | None,
    scale: Tensor,
    teacher_scale: Tensor | None,
    tables: FoldTables | RowTables,
    saved: tuple[Tensor, ...],
    upstream: Upstream,
    needs: list[bool],
    backend: str,
) -> Gradients:
    """The gradients of :func:`statistics`, for who differentiates around it.

    ``saved`` are the first seven of its statistics. They may be those of more columns than y
    has: the backward of a part of a matrix. ``needs`` says which of x, y and scale want one.
    """
    if not len(x) or not len(y):
        return Gradients(torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(scale))
    problem = make_problem(x, y, teacher, scale, teacher_scale, tables)
    outputs = torch.ops.mxm_kernels.statistics_backward(
        *problem, *saved, x.new_empty(0), *upstream, needs, backend
    )
    return Gradients(*outputs)


def make_problem(
    x: Tensor,
    y: Tensor,
    teacher: tuple[Tensor, Tensor] | None,
    scale: Tensor,
    teacher_scale: Tensor | None,
    tables: FoldTables | RowTables,
) -> Problem:
    """What the operators take, from what the losses have."""
    teacher_x, teacher_y = teacher if teacher is not None else (None, None)
    return Problem(
        x,
        y,
        teacher_x,
        teacher_y,
        scale,
        teacher_scale,
        *vectors(tables),
    )


def _of_no_rows(problem: Problem, diagnostics: bool) -> Statistics:
    """The statistics of an empty matrix: no sum has a term."""
    empty = Statistics(*problem.room(diagnostics))
    nothing = {"u_rows": 0.0, "u_cols": 0.0, "h_rows": 0.0, "h_cols": 0.0}
    for name, value in empty._asdict().items():
        value.fill_(nothing.get(name, -torch.inf))
    return empty


def vectors(tables: FoldTables | RowTables) -> tuple[Tensor, ...]:
    """The tables that an operator reads, in the order of ``TABLES``."""
    t = tables
    return t.image_groups, t.text_groups, t.image_offsets, t.pair_images, t.pair_texts


@torch.library.impl(library, "statistics", "CompositeExplicitAutograd")
def _forward(*arguments):
    problem, (backend, *rest) = Problem(*arguments[:_PROBLEM]), arguments[_PROBLEM:]
    with plain(problem):
        result = backends.load(backend).forward(problem, *rest)
        poison = poison_of(problem)
        poisoned = "n_rows", "n_cols", "m_rows", "m_cols", "h_rows", "h_cols"  # all losses read n
        return tuple(
            v + poison if f in poisoned and len(v) else v for f, v in result._asdict().items()
        )


@contextmanager
def plain(problem: Problem):
    """No graph, and no autocast: it would round the products of a backend's tiles."""
    with torch.no_grad(), torch.autocast(problem.x.device.type, enabled=False):
        yield


def poison_of(problem: Problem) -> Tensor:
    """0, or NaN if a feature is not finite or a scale is not positive.

    A feature of -inf can make exp(S) vanish instead of overflow, and its row would silently
    drop out of every sum. Of a float8 teacher the scale says whether its features were finite.
    """
    features = [problem.x]
    if problem.y is not problem.x:  # inside one modality both are its rows
        features.append(problem.y)
    if problem.teacher_x is not None and problem.teacher_y is not None and not problem.is_float8:
        features += [problem.teacher_x, problem.teacher_y]
    shown = [f.sum(dtype=problem.accumulator) for f in features]
    # The logarithm of what is not positive is not finite.
    shown += [s.log() for s in (problem.scale, problem.teacher_scale) if s is not None]
    return sum(shown[1:], shown[0]) * 0


@torch.library.register_fake("mxm_kernels::statistics", lib=library)
def _fake_forward(*arguments):
    problem, (backend, *rest) = Problem(*arguments[:_PROBLEM]), arguments[_PROBLEM:]
    return tuple(fake_statistics(problem, backend, *rest))


def fake_statistics(problem: Problem, backend: str, diagnostics: bool = False) -> Statistics:
    """Statistics of the right shapes, and with them what the backend keeps."""
    room = problem.room(diagnostics)
    return room._replace(kept=room.kept.new_empty(backends.load(backend).kept_shape(problem)))


@torch.library.impl(library, "statistics_backward", "CompositeExplicitAutograd")
def _backward(*arguments):
    problem, rest = Problem(*arguments[:_PROBLEM]), arguments[_PROBLEM:]
    result = of_saved(rest[:_SAVED])
    upstream = Upstream(*(g.contiguous() for g in rest[_SAVED:-2]))
    upstream = upstream._replace(positives=upstream.positives[None])
    needs, backend = Needs(*rest[-2]), rest[-1]
    with plain(problem):
        return tuple(backends.load(backend).backward(problem, result, upstream, needs))


def saved_of(statistics: Statistics) -> tuple[Tensor, ...]:
    """What backward reads of the statistics: no diagnostics."""
    return *statistics[: _SAVED - 1], statistics.kept


def of_saved(saved: Sequence[Tensor]) -> Statistics:
    """Its inverse, with empty diagnostics."""
    *statistics, kept = saved
    every = [*statistics, *[kept.new_empty(0)] * 4, kept]
    return Statistics(*every)


@torch.library.register_fake("mxm_kernels::statistics_backward", lib=library)
def _fake_backward(*arguments):
    return fake_gradients(Problem(*arguments[:_PROBLEM]), Needs(*arguments[-2]))


def fake_gradients(problem: Problem, needs: Needs) -> tuple[Tensor, ...]:
    """Gradients of the right shapes."""
    x, y = problem.x, problem.y
    return tuple(
        Gradients(
            x.new_empty(x.shape if needs.x else 0),
            y.new_empty(y.shape if needs.y else 0),
            problem.scale.new_empty(()),
        )
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:_PROBLEM], *saved_of(Statistics(*output)))
    ctx.mark_non_differentiable(*output[5:])
    ctx.set_materialize_grads(False)  # ten calls, for zeros that nobody reads
    ctx.backend = inputs[_PROBLEM]


def _differentiate(ctx, *grads):
    outputs = ctx.saved_tensors[_PROBLEM : _PROBLEM + 5]
    upstream = [
        torch.zeros_like(output) if grad is None else grad
        for grad, output in zip(grads[:5], outputs, strict=True)
    ]
    needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[4]]
    gradients = torch.ops.mxm_kernels.statistics_backward(
        *ctx.saved_tensors, *upstream, needs, ctx.backend
    )
    return *gradients_of_inputs(gradients, needs), None, None


def gradients_of_inputs(gradients: Sequence[Tensor], needs: Sequence[bool]) -> tuple:
    """One for each field of a problem, of which x, y and the scale have one."""
    dx, dy, ds = (g if need else None for g, need in zip(gradients, needs, strict=True))
    return dx, dy, None, None, ds, *[None] * (_PROBLEM - 5)


def refuse_second_derivative(ctx, *grads):
    """Differentiate a backward."""
    raise RuntimeError(
        "mxm_kernels losses have first derivatives only: call backward without create_graph=True"
    )


torch.library.register_autograd(
    "mxm_kernels::statistics", _differentiate, setup_context=_setup_context, lib=library
)
torch.library.register_autograd(
    "mxm_kernels::statistics_backward", refuse_second_derivative, lib=library
)
