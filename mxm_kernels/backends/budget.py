"""What the backends for CPUs make of the memory budget."""

from __future__ import annotations

from mxm_kernels.backends.interface import Memory, Problem
from mxm_kernels.memory import CPU_DEFAULT


def room_of(memory: Memory) -> int:
    """Bytes that a call may take: a budget of 0 has the workspace of the default."""
    return CPU_DEFAULT if memory.budget == 0 else memory.budget


def kept_bytes(problem: Problem, stride: int) -> int:
    """Bytes of S, and of T, with room for ``stride`` numbers in a row."""
    return problem.matrices * problem.x.shape[0] * stride * problem.kept_dtype.itemsize


def widened_depth(problem: Problem) -> int:
    """Numbers in the longest row of features that has to be widened; 0 where none has to be."""
    p = problem
    depths = [f.shape[1] for f in (p.x, p.teacher_x) if f is not None and f.dtype != p.accumulator]
    return max(depths, default=0)


def too_small(memory: Memory, least: int, what: str) -> ValueError:
    """The error of a budget that does not hold the least workspace."""
    return ValueError(
        f"the memory budget of {memory.budget:,} bytes is too small for this batch: {what} takes "
        f"at least {least:,} bytes; raise it with mxm_kernels.set_memory_budget({least}, 'cpu') "
        "or more"
    )
