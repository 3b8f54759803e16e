"""What the operators share: the torch.library, their schemas, and the modes that they run in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from mxm_kernels.backends.interface import Memory, PairRules, Problem
from mxm_kernels.folds.tables import FoldTables, PairTables
from mxm_kernels.memory import budget_of

library = torch.library.Library("mxm_kernels", "DEF")


def schema(*names: str) -> str:
    """Tensor arguments of an operator, named as the fields of a NamedTuple."""
    return ", ".join(f"Tensor {name}" for name in names)


TABLES = schema(*PairTables._fields)
RULES = ", ".join(f"Tensor? {name}" for name in PairRules._fields)
_FEATURES = "Tensor x, Tensor y, Tensor? teacher_x, Tensor? teacher_y, Tensor scale"
INPUTS = f"{_FEATURES}, Tensor? teacher_scale, {TABLES}, {RULES}"  # the fields of Problem
INPUT_COUNT = len(Problem._fields)
NO_RULES = PairRules()


def pair_tables(tables: FoldTables | PairTables) -> PairTables:
    """The tables that an operator reads."""
    return tables if isinstance(tables, PairTables) else tables.pair_tables()


def make_problem(
    x: Tensor,
    y: Tensor,
    teacher: tuple[Tensor, Tensor] | None,
    scale: Tensor,
    teacher_scale: Tensor | None,
    tables: FoldTables | PairTables,
    rules: PairRules = NO_RULES,
) -> Problem:
    """The arguments of the operators, from features, scales, tables and rules."""
    teacher_x, teacher_y = teacher if teacher is not None else (None, None)
    features = x, y, teacher_x, teacher_y, scale, teacher_scale
    return Problem(*features, *pair_tables(tables), *rules)


@contextmanager
def no_graph(like: Tensor):
    """No graph, and no autocast: it would round the products of a backend's tiles."""
    kind = like.device.type
    rounds = torch.is_autocast_enabled(kind)  # asked, since to make an autocast takes 40 us
    with torch.no_grad(), torch.autocast(kind, enabled=False) if rounds else nullcontext():
        yield


@contextmanager
def within(memory: Memory, like: Tensor):
    """``no_graph``; where memory runs out, the error names the budget and what lowers it."""
    try:
        with no_graph(like):
            yield
    except torch.OutOfMemoryError as error:  # its own text first, which programs search
        raise torch.OutOfMemoryError(
            f"{error} The memory budget in force is {memory.budget:,} bytes; "
            f"mxm_kernels.set_memory_budget(nbytes, {like.device.type!r}) lowers it."
        ) from error


def memory_for(x: Tensor, *leaves: Tensor) -> Memory:
    """The memory of a call on x and ``leaves``: the budget in force, kept if one wants a gradient.

    Inside an autograd.Function grad mode is off: it asks before, and passes the answer on.
    """
    wanted = torch.is_grad_enabled() and any(v.requires_grad for v in (x, *leaves))
    return Memory(budget_of(x.device), wanted)


def wanted(gradients: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """The gradients that are wanted, None for the others."""
    return [g if need else None for g, need in zip(gradients, needs, strict=True)]


def passed_on(ctx, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The first inputs of an autograd.Function as they are, for whatever reads them next.

    One that wants no gradient gets none: it would cost that reader a product.
    """
    passed = tuple([v.view_as(v) for v in inputs])
    wants = zip(passed, ctx.needs_input_grad[: len(passed)], strict=True)
    ctx.mark_non_differentiable(*[v for v, needed in wants if not needed])
    return passed


def register_autograd(name: str, differentiate: Callable, setup_context: Callable) -> None:
    """Give the operator ``name`` its gradients, as ``torch.library.register_autograd`` does.

    That one reads the whole schema once for every argument: 170 us a call of 15 arguments. The
    schema has no default here, so a call has all its arguments.
    """
    operator = getattr(torch.ops.mxm_kernels, name).default

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            with torch._C._AutoDispatchBelowAutograd():
                output = operator(*inputs)
            setup_context(ctx, inputs, output)
            return output

        backward = staticmethod(differentiate)

    Differentiable.__name__ = name  # in profiles
    library.impl(name, Differentiable.apply, "Autograd")


def refuse_second_derivative(ctx, *grads):
    """Differentiate a backward."""
    raise RuntimeError(
        "mxm_kernels losses have first derivatives only: call backward without create_graph=True"
    )


def is_differentiated_once(operator: str) -> None:
    """Make a second derivative through ``operator``, itself a backward, a clear error."""
    torch.library.register_autograd(operator, refuse_second_derivative, lib=library)
