"""How a call's memory budget is spent: what is kept, chunks of dS, spans of the statistics.

Of a budget of B bytes a part R, a quarter and at most 256 MiB, is for the scratch of the
statistics. S and T are kept if they fit in the rest. Backward then has B less what is kept for its
chunk of dS, and R at least. A budget of 0 keeps nothing and is otherwise the default.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import torch

from mxm_kernels.backends.interface import Memory, Problem
from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.chunks import ALIGNMENT, chunk_shape
from mxm_kernels.memory import default_budget

MOST_SCRATCH = 256 << 20
MOST_WORKSPACE = 1 << 30  # more makes no product faster: chunks are of 16,384 rows at most
# Beside a chunk its kernels sum by rows of a tile: at most three float32 numbers for every 64
# columns of 16-bit dS, or for every 128 of float32 dS.
BESIDE = 3 / 32


class Spent(NamedTuple):
    """What a call of an operator spends its budget on."""

    stride: int | None  # numbers from row to row of what is kept, None where nothing is
    scratch: int  # bytes of the partial statistics of one span
    workspace: int  # bytes of a chunk, with the stored products of float32 features


def kept_stride(problem: Problem, memory: Memory) -> int | None:
    """Numbers from row to row of what forward keeps; None where it keeps nothing."""
    if not memory.keep or memory.budget == 0:
        return None
    cols = problem.y.shape[0]
    stride = cols
    if problem.kept_dtype == torch.int16:  # the tiles that write it need room for whole ones
        width = launch.pick("statistics", problem).cols
        stride = -(-cols // width) * width
    nbytes = kept_bytes(problem, stride)
    return stride if nbytes + _scratch(memory.budget) <= memory.budget else None


def kept_bytes(problem: Problem, stride: int) -> int:
    """Bytes of S, and of T where there is a teacher."""
    return problem.matrices * problem.x.shape[0] * stride * problem.kept_dtype.itemsize


def spend(problem: Problem, memory: Memory, stride: int | None) -> Spent:
    """How the budget is spent where rows of ``stride`` numbers are kept, or nothing (None).

    Raises:
        ValueError: the budget is too small for the smallest chunk and span.
    """
    budget = memory.budget or default_budget(problem.x.device)
    scratch = _scratch(budget)
    rest = budget - (scratch if stride is None else kept_bytes(problem, stride))
    workspace = min(int(rest / (1 + BESIDE)), MOST_WORKSPACE)
    least = least_bytes(problem)
    if budget < least:
        raise ValueError(
            f"the memory budget is {budget} bytes, and this batch needs at least {least}: "
            f"call mxm_kernels.set_memory_budget({least}, {problem.x.device.type!r}) or more"
        )
    return Spent(stride, scratch, workspace)


def span_width(
    problem: Problem, tile: tuple[int, int], fields: int, spent: Spent, stored: bool
) -> int:
    """Columns of one launch of the statistics, whole blocks of ALIGNMENT.

    ``tile`` is its height and width. ``stored``: whether their products lie in the workspace.
    """
    rows = problem.x.shape[0]
    block = _partial_bytes(rows, tile, fields)
    blocks = spent.scratch // block
    if stored:
        blocks = min(blocks, spent.workspace // (4 * problem.matrices * rows * ALIGNMENT))
    return max(1, blocks) * ALIGNMENT


def chunk_of(problem: Problem, spent: Spent, per_entry: int) -> tuple[int, int]:
    """Height and width of a chunk of dS that takes ``per_entry`` bytes for each of its entries."""
    rows, cols = problem.x.shape[0], problem.y.shape[0]
    return chunk_shape(rows, cols, per_entry, spent.workspace)


def bytes_per_entry(problem: Problem, stored: bool) -> int:
    """Bytes of a chunk for each entry of dS; ``stored``: with its products, S in dS's place."""
    if stored:
        return 4 * problem.matrices
    return launch.workspace_dtype(problem.x.dtype, problem.x.device).itemsize


def least_bytes(problem: Problem) -> int:
    """The smallest budget: four times a span of ALIGNMENT columns, or its stored products."""
    rows, side = problem.x.shape[0], 16 if problem.x.device.type == "cpu" else 64
    span = _partial_bytes(rows, (side, side), 7)
    if problem.x.dtype == torch.float32:
        span = max(span, 2 * 4 * problem.matrices * rows * ALIGNMENT)
    return 4 * span


def budget_of_spans(problem: Problem) -> int:
    """A budget that walks a small batch in several spans and chunks, for what tests and checks."""
    return least_bytes(problem)


def _partial_bytes(rows: int, tile: tuple[int, int], fields: int) -> int:
    """Partial statistics of a span of ALIGNMENT columns."""
    height, width = tile
    of_rows = ceil(ALIGNMENT / width) * rows
    return 4 * fields * (of_rows + ceil(rows / height) * ALIGNMENT)


def _scratch(budget: int) -> int:
    return min(MOST_SCRATCH, budget // 4)
