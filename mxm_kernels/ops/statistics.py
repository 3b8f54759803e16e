"""The operator of the log-sum-exp losses: features and pairs in, the list of rows out.

    (x, y, teacher x, teacher y, s, t, folds, rules) -> (n, S_pos, u, m, e)

besides t, which backward reads, and, where they are asked for, diagnostics, which have no
gradient. Symbols as in ``backends/interface.py``: n, u, m (``neg_sum``, where it is asked for) and
e (where rules remove pairs) are of the R = M + N rows of S and of its transpose, S_pos of their 2 P
positives.

Its backward, with E = exp and every exponent <= 0; i is a row of S, j one of its transpose:

    dS_ij = dn_i E(S_ij - n_i) + dm_i                       where j is a negative of i
            + de_i E(S_ij - e_i)                            where it is removed for i
            + the same of j                                 where i is a negative of j, or removed
            dS_pos, of both places of the pair              where it is a positive pair
            + du_i E(T_ij - t_i) + du_j E(T_ij - t_j)       everywhere

    dx = s dS y          dy = s dS^T x          ds = sum_ij dS_ij (S_ij - b_i - b_j) / s
    db_i = sum_j dS_ij                          db_j = sum_i dS_ij

It saves its inputs and the statistics, and within the memory budget the products of S and T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.interface import (
    Gradients,
    Memory,
    Needs,
    PairRules,
    Problem,
    Statistics,
    Upstream,
)
from mxm_kernels.folds.tables import FoldTables, PairTables
from mxm_kernels.ops.library import (
    INPUT_COUNT,
    INPUTS,
    NO_RULES,
    is_differentiated_once,
    library,
    make_problem,
    memory_for,
    register_autograd,
    schema,
    wanted,
    within,
)

# What backward reads.
_SAVED = (*Upstream._fields, "teacher_lse", "neg_mean", "kept", "units")
_UPSTREAM = schema(*(f"d_{name}" for name in Upstream._fields))
_LEARNED = [Problem._fields.index(name) for name in Gradients._fields]
library.define(
    f"statistics({INPUTS}, str backend, bool diagnostics, bool neg_sum, int budget, bool keep) -> "
    f"({schema(*Statistics._fields)})"
)
library.define(
    f"statistics_backward({INPUTS}, {schema(*_SAVED)}, {_UPSTREAM}, bool[] needs, str backend, "
    f"int budget) -> ({schema(*Gradients._fields)})"
)


def statistics(
    x: Tensor,
    y: Tensor,
    teacher: tuple[Tensor, Tensor] | None,
    scale: Tensor,
    teacher_scale: Tensor | None,
    tables: FoldTables | PairTables,
    backend: str,
    diagnostics: bool = False,
    neg_sum: bool = False,
    memory: Memory | None = None,
    rules: PairRules = NO_RULES,
) -> Statistics:
    """Run the operator: x (M, D), y (N, D), teacher features alike, 0-d scales.

    Teacher features without a scale only filter: nothing of T is summed.

    By default the memory budget in force holds, for backward too, and S and T may be kept within
    it where a gradient is wanted. Returns the statistics in float32 (float64 for float64
    features), differentiable in x, y, scale and the offsets. Diagnostics and the sums of S over the
    negatives come from the same pass without another product.
    """
    problem = make_problem(x, y, teacher, scale, teacher_scale, tables, rules)
    if not len(x) or not len(y):  # a shard of a batch may lack a modality
        return _of_no_entries(problem, diagnostics, neg_sum)
    if memory is None:
        leaves = (y, scale) if rules.logit_offsets is None else (y, scale, rules.logit_offsets)
        memory = memory_for(x, *leaves)
    made = torch.ops.mxm_kernels.statistics(*problem, backend, diagnostics, neg_sum, *memory)
    return Statistics(*made)


def statistics_backward(
    x: Tensor,
    y: Tensor,
    teacher: tuple[Tensor, Tensor] | None,
    scale: Tensor,
    teacher_scale: Tensor | None,
    tables: FoldTables | PairTables,
    saved: Statistics,
    upstream: Upstream,
    needs: list[bool],
    backend: str,
    memory: Memory,
    rules: PairRules = NO_RULES,
) -> Gradients:
    """The gradients of :func:`statistics`, for an autograd.Function that is built around it.

    ``saved`` may be the statistics of a larger matrix: the backward of a part of it. ``needs``
    says which of x, y, scale and offsets want a gradient. ``memory`` is that of forward.
    """
    if not len(x) or not len(y):
        zeros = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(scale)
        return Gradients(*zeros, scale.new_zeros(len(x) + len(y)))
    problem = make_problem(x, y, teacher, scale, teacher_scale, tables, rules)
    return Gradients(
        *torch.ops.mxm_kernels.statistics_backward(
            *problem, *pack_saved(saved), *upstream, needs, backend, memory.budget
        )
    )


_ZERO = "teacher_mean", "neg_sum", "entropy", "num_negatives"


def _of_no_entries(problem: Problem, diagnostics: bool, neg_sum: bool) -> Statistics:
    """The statistics of an empty matrix: no sum has a term."""
    empty = problem.allocate(diagnostics, neg_sum)
    for name, value in empty._asdict().items():
        value.fill_(0.0 if name in _ZERO else -torch.inf)
    return empty


def needs_of(needs: list[bool]) -> Needs:
    """Which of x, y, scale and offsets want a gradient."""
    x, y, scale, offsets = needs
    return Needs(x, y, scale, logit_offsets=offsets)


def pack_saved(statistics: Statistics) -> tuple[Tensor, ...]:
    """The fields of the statistics that backward reads: all but the diagnostics."""
    return tuple([getattr(statistics, name) for name in _SAVED])


def _unpack_saved(saved: tuple[Tensor, ...]) -> Statistics:
    """The statistics from what :func:`pack_saved` gave; the other fields are empty."""
    nothing, given = saved[0].new_empty(0), dict(zip(_SAVED, saved, strict=True))
    return Statistics(*[given.get(name, nothing) for name in Statistics._fields])


@torch.library.impl(library, "statistics", "CompositeExplicitAutograd")
def _forward(*arguments):
    *inputs, backend, diagnostics, neg_sum, budget, keep = arguments
    problem, memory = Problem(*inputs), Memory(budget, keep)
    with within(memory, problem.x):
        return tuple(backends.load(backend).forward(problem, memory, diagnostics, neg_sum))


@torch.library.register_fake("mxm_kernels::statistics", lib=library)
def _fake_forward(*arguments):
    *inputs, backend, diagnostics, neg_sum, budget, keep = arguments
    problem = Problem(*inputs)
    loaded = backends.load(backend)
    stride = loaded.kept_stride(problem, Memory(budget, keep))
    means = loaded.gives_neg_mean
    return tuple(problem.allocate(diagnostics, neg_sum, neg_mean=means, stride=stride))


@torch.library.impl(library, "statistics_backward", "CompositeExplicitAutograd")
def _backward(*arguments):
    problem = Problem(*arguments[:INPUT_COUNT])
    *rest, needs, backend, budget = arguments[INPUT_COUNT:]
    saved, upstream = _unpack_saved(tuple(rest[: len(_SAVED)])), rest[len(_SAVED) :]
    memory, run = Memory(budget), backends.load(backend).backward
    with within(memory, problem.x):
        given = Upstream(*[g if g.is_contiguous() else g.contiguous() for g in upstream])
        return tuple(run(problem, saved, given, needs_of(needs), memory))


@torch.library.register_fake("mxm_kernels::statistics_backward", lib=library)
def _fake_backward(*arguments):
    (x, y), needs = arguments[:2], needs_of(arguments[-3])
    scale = arguments[Problem._fields.index("scale")]
    return (
        x.new_empty(x.shape if needs.x else 0),
        y.new_empty(y.shape if needs.y else 0),
        scale.new_empty(()),
        scale.new_empty(x.shape[0] + y.shape[0] if needs.logit_offsets else 0),
    )


def _setup_context(ctx, inputs, output):
    made = Statistics(*output)
    ctx.save_for_backward(*inputs[:INPUT_COUNT], *pack_saved(made))
    ctx.mark_non_differentiable(*made[len(Upstream._fields) :])
    ctx.set_materialize_grads(False)  # many calls, for zeros that nobody reads
    ctx.backend, ctx.budget = inputs[INPUT_COUNT], inputs[INPUT_COUNT + 3]


def _differentiate(ctx, *grads):
    saved = ctx.saved_tensors  # once: hooks compute or copy them at every access
    # After the inputs they begin with the outputs that are differentiable.
    outputs = saved[INPUT_COUNT : INPUT_COUNT + len(Upstream._fields)]
    upstream = [
        output if not output.numel() else torch.zeros_like(output) if grad is None else grad
        for grad, output in zip(grads, outputs, strict=False)
    ]
    needs = [ctx.needs_input_grad[k] for k in _LEARNED]
    gradients = torch.ops.mxm_kernels.statistics_backward(
        *saved, *upstream, needs, ctx.backend, ctx.budget
    )
    made: list[Tensor | None] = [None] * (INPUT_COUNT + 5)
    for k, gradient in zip(_LEARNED, wanted(gradients, needs), strict=True):
        made[k] = gradient
    return tuple(made)


register_autograd("statistics", _differentiate, _setup_context)
is_differentiated_once("mxm_kernels::statistics_backward")
