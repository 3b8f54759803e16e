"""The operator of sigmoid losses: like ``statistics``, with softplus instead of log-sum-exp.

    (x, y, s, b, folds) -> (r, S_pos)

    r_i = sum_{j in Neg(i)} softplus(S_ij + b)          of the M + N rows of S and its transpose

SigLIP (arXiv 2303.15343) is the mean of -log sigmoid(z_ij (S_ij + b)), z = 1 for a positive
pair and -1 for another: the negatives' part is r, the positives' is softplus(-(S_pos + b)).

    dS_ij = (dr_i + dr_j) sigmoid(S_ij + b)        where (i, j) is a negative pair
            dS_pos, of both places of the pair     where it is a positive pair

    dx = s dS y          dy = s dS^T x          ds = sum_ij dS_ij (S_ij - b_i - b_j) / s

    db = sum of dS over the negatives; what a loss does with S_pos + b is outside. S has the offsets
    b_i + b_j, whose gradients are the sums of the rows and of the columns of dS.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mxm_kernels import backends
from mxm_kernels.backends.interface import (
    Memory,
    Needs,
    PairRules,
    Problem,
    SigmoidGradients,
    SigmoidStatistics,
)
from mxm_kernels.folds.tables import FoldTables, PairTables
from mxm_kernels.ops.library import (
    NO_RULES,
    TABLES,
    is_differentiated_once,
    library,
    memory_for,
    pair_tables,
    register_autograd,
    schema,
    wanted,
    within,
)

RULES = "Tensor? logit_offsets, Tensor? exclude_ids, Tensor? within_ids"
INPUTS = f"{schema('x', 'y', 'scale', 'bias')}, {TABLES}, {RULES}"
INPUT_COUNT = INPUTS.count("Tensor")
LEARNED = 0, 1, 2, 3, INPUT_COUNT - 3  # x, y, scale, bias, offsets
_SUMS = schema(*SigmoidStatistics._fields)
_UPSTREAM = schema(*(f"d_{name}" for name in SigmoidStatistics._fields))
library.define(f"sigmoid_statistics({INPUTS}, str backend, int budget) -> ({_SUMS})")
library.define(
    f"sigmoid_statistics_backward({INPUTS}, Tensor positives, {_UPSTREAM}, bool[] needs, "
    f"str backend, int budget) -> ({schema(*SigmoidGradients._fields)})"
)


def sigmoid_statistics(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    tables: FoldTables | PairTables,
    backend: str,
    memory: Memory | None = None,
    rules: PairRules = NO_RULES,
) -> SigmoidStatistics:
    """Run the operator: x (M, D), y (N, D), 0-d scale and bias.

    By default the memory budget in force holds, for backward too. Nothing of S is kept.

    Returns the statistics in float32 (float64 for float64 features), differentiable in x, y,
    scale, bias and the offsets. The positives are S without the bias.
    """
    if not len(x) or not len(y):  # a shard of a batch may lack a modality
        return SigmoidStatistics(scale.new_zeros(len(x) + len(y)), scale.new_zeros(0))
    run = torch.ops.mxm_kernels.sigmoid_statistics
    if memory is None:
        memory = memory_for(x, y, scale, bias)
    inputs = sigmoid_inputs(x, y, scale, bias, tables, rules)
    return SigmoidStatistics(*run(*inputs, backend, memory.budget))


def sigmoid_statistics_backward(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    tables: FoldTables | PairTables,
    positives: Tensor,
    upstream: SigmoidStatistics,
    needs: list[bool],
    backend: str,
    memory: Memory,
    rules: PairRules = NO_RULES,
) -> SigmoidGradients:
    """Gradients of :func:`sigmoid_statistics`, for an autograd.Function that is built around it.

    ``memory`` is that of forward.
    """
    if not len(x) or not len(y):
        dx, dy, ds, db = (torch.zeros_like(t) for t in (x, y, scale, bias))
        return SigmoidGradients(dx, dy, ds, db, scale.new_zeros(len(x) + len(y)))
    run = torch.ops.mxm_kernels.sigmoid_statistics_backward
    inputs = sigmoid_inputs(x, y, scale, bias, tables, rules)
    outputs = run(*inputs, positives, *upstream, needs, backend, memory.budget)
    return SigmoidGradients(*outputs)


def sigmoid_inputs(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor,
    tables: FoldTables | PairTables,
    rules: PairRules,
) -> tuple[Tensor | None, ...]:
    """The inputs of the sigmoid operators. They have no teacher."""
    told = rules.logit_offsets, rules.exclude_ids, rules.within_ids
    return x, y, scale, bias, *pair_tables(tables), *told


def problem_of(*inputs: Any) -> tuple[Problem, Tensor]:
    """A problem without a teacher, and the bias, from the inputs of a sigmoid operator."""
    x, y, scale, bias, *tables, offsets, exclude_ids, within_ids = inputs
    rules = PairRules(offsets, None, exclude_ids, within_ids, None)
    return Problem(*(x, y, None, None, scale, None, *tables, *rules)), bias


@torch.library.impl(library, "sigmoid_statistics", "CompositeExplicitAutograd")
def _forward(*arguments):
    backend, budget = arguments[INPUT_COUNT:]
    memory = Memory(budget)
    with within(memory, arguments[0]):
        problem, bias = problem_of(*arguments[:INPUT_COUNT])
        made = backends.load(backend).sigmoid_forward(problem, bias, memory)
        # A feature of -inf makes terms vanish: 0 times a sum that is not finite is NaN.
        total = problem.x.sum(dtype=problem.accumulator) + problem.y.sum(dtype=problem.accumulator)
        return torch.add(made.softplus_sum, total, alpha=0), made.positives


@torch.library.register_fake("mxm_kernels::sigmoid_statistics", lib=library)
def _fake_forward(*arguments):
    made = problem_of(*arguments[:INPUT_COUNT])[0].allocate(diagnostics=False)
    return made.neg_lse, made.positives


@torch.library.impl(library, "sigmoid_statistics_backward", "CompositeExplicitAutograd")
def _backward(*arguments):
    positives, *grads, needs, backend, budget = arguments[INPUT_COUNT:]
    memory, run = Memory(budget), backends.load(backend).sigmoid_backward
    with within(memory, arguments[0]):
        problem, bias = problem_of(*arguments[:INPUT_COUNT])
        upstream = SigmoidStatistics(*(g.contiguous() for g in grads))
        return tuple(run(problem, bias, positives, upstream, Needs(*needs), memory))


@torch.library.register_fake("mxm_kernels::sigmoid_statistics_backward", lib=library)
def _fake_backward(*arguments):
    x, y, scale, bias = arguments[:4]
    needs = Needs(*arguments[-3])
    return (
        x.new_empty(x.shape if needs.x else 0),
        y.new_empty(y.shape if needs.y else 0),
        scale.new_empty(()),
        bias.new_empty(()),
        bias.new_empty(x.shape[0] + y.shape[0] if needs.logit_offsets else 0),
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:INPUT_COUNT], output[1])
    ctx.backend, ctx.budget = inputs[INPUT_COUNT:]


def _differentiate(ctx, *grads):
    needs = [ctx.needs_input_grad[k] for k in LEARNED]
    gradients = torch.ops.mxm_kernels.sigmoid_statistics_backward(
        *ctx.saved_tensors, *grads, needs, ctx.backend, ctx.budget
    )
    made: list[Tensor | None] = [None] * (INPUT_COUNT + 2)
    for k, gradient in zip(LEARNED, wanted(gradients, needs), strict=True):
        made[k] = gradient
    return tuple(made)


register_autograd("sigmoid_statistics", _differentiate, _setup_context)
is_differentiated_once("mxm_kernels::sigmoid_statistics_backward")
