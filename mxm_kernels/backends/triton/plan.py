"""How a call's memory budget is spent: spans of the statistics, what is kept, chunks of dS.

Forward walks the columns in spans, whose partial statistics take MOST_SCRATCH bytes at most; spans
of float32 features have their products in memory, of at most MOST_PRODUCTS bytes. Spans hang on the
batch alone: another budget gives the same bits. S and T are kept if they fit beside a span and a
modest chunk. Backward has what is left of the budget for its chunk of dS. A budget of 0 keeps
nothing and is otherwise the default.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from mxm_kernels.backends.interface import Memory, Problem
from mxm_kernels.backends.triton import launch
from mxm_kernels.backends.triton.chunks import ALIGNMENT, chunk_shape, padded
from mxm_kernels.memory import default_budget

MOST_SCRATCH = 256 << 20
MOST_PRODUCTS = 128 << 20
MOST_WORKSPACE = 1 << 30  # more makes no product faster: chunks are of 16,384 rows at most
MODEST_CHUNK = 64 << 20  # bytes that a chunk of dS has at least, where S and T are kept
LEAST_CHUNK = ALIGNMENT * ALIGNMENT  # entries


def smallest_side(problem: Problem) -> int:
    """Rows or columns of the smallest tile of a setting."""
    return 16 if problem.x.device.type == "cpu" else 64


class Spans(NamedTuple):
    """How forward walks the columns."""

    width: int  # of a span, whole blocks of ALIGNMENT columns
    nbytes: int  # that a span takes beside what is kept


def spans_of(problem: Problem, fields: int) -> Spans:
    """The spans of a forward whose rows have ``fields`` partial statistics each."""
    rows, cols = len(problem.x), len(problem.y)
    stored = problem.x.dtype == torch.float32
    side = smallest_side(problem)
    # Of a block of ALIGNMENT columns: lines of the rows and of the columns, and its products.
    of_rows, of_cols = ALIGNMENT // side * rows, -(-rows // side) * ALIGNMENT
    scratch = 4 * fields * (of_rows + of_cols)
    products = 4 * problem.matrices * rows * ALIGNMENT if stored else 0
    blocks = max(1, MOST_SCRATCH // scratch)
    if stored:
        blocks = max(1, min(blocks, MOST_PRODUCTS // products))
    blocks = min(blocks, -(-cols // ALIGNMENT))
    return Spans(blocks * ALIGNMENT, blocks * (scratch + products))


def most_fields(problem: Problem) -> int:
    """The most partial statistics that a row may have."""
    return 10 if problem.told else 8


def kept_stride(problem: Problem, memory: Memory) -> int | None:
    """Numbers from row to row of what forward keeps; None where it keeps nothing."""
    if not memory.keep or memory.budget == 0:
        return None
    if problem.filters and problem.kept_dtype == torch.int16:
        return None  # backward has to decide by the products that forward decided by
    cols = len(problem.y)
    # The kernel that multiplies 16-bit features stores whole tiles.
    stride = padded(cols) if problem.kept_dtype == torch.int16 else cols
    entry = launch.workspace_dtype(problem.x.dtype, problem.x.device).itemsize
    chunk = min(MODEST_CHUNK, len(problem.x) * padded(cols) * entry)
    beside = max(spans_of(problem, most_fields(problem)).nbytes, chunk)
    return stride if kept_bytes(problem, stride) + beside <= memory.budget else None


def kept_bytes(problem: Problem, stride: int) -> int:
    """Bytes of S, and of T where there is a teacher."""
    return problem.matrices * len(problem.x) * stride * problem.kept_dtype.itemsize


def check_budget(problem: Problem, memory: Memory) -> None:
    """Whether a span and the smallest chunk fit into the budget.

    Raises:
        ValueError: they do not; the message names the least that does.
    """
    budget = memory.budget or default_budget(problem.x.device)
    least = max(spans_of(problem, most_fields(problem)).nbytes, 8 * LEAST_CHUNK)
    if budget < least:
        raise ValueError(
            f"the memory budget of {budget} bytes is too small: a batch of {len(problem.x)} x "
            f"{len(problem.y)} rows takes {least} at least; call "
            f"set_memory_budget({least}, {problem.x.device.type!r}) or more"
        )


def chunk_of(problem: Problem, memory: Memory, kept: int, remade: bool) -> tuple[int, int]:
    """Height and width of a chunk of dS beside ``kept`` bytes.

    ``remade``: whether S and T are made again in it, S in the place of dS.
    """
    budget = memory.budget or default_budget(problem.x.device)
    entry = launch.workspace_dtype(problem.x.dtype, problem.x.device).itemsize
    if remade:
        entry = 4 * problem.matrices
    workspace = min(budget - kept, MOST_WORKSPACE)
    if problem.told:
        # Beside an entry lie its shares of a line of its row and of one of its column, of 4 bytes
        # a number: tiles have ``side`` columns at least, and half as many rows.
        side = smallest_side(problem)
        workspace = workspace * entry * side // (entry * side + 12)
    workspace = max(workspace, entry * LEAST_CHUNK)
    return chunk_shape(len(problem.x), len(problem.y), entry, workspace)
