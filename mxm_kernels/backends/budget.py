"""What the backends for CPUs make of the memory budget."""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels.backends.interface import Memory, Problem
from mxm_kernels.memory import CPU_DEFAULT


def room_of(memory: Memory) -> int:
    """Bytes that a call may take: a budget of 0 has the workspace of the default."""
    return CPU_DEFAULT if memory.budget == 0 else memory.budget


def kept_bytes(problem: Problem, stride: int) -> int:
    """Bytes of S, and of T, with room for ``stride`` numbers in a row."""
    return problem.matrices * problem.x.shape[0] * stride * problem.kept_dtype.itemsize


def stride_with_positives(problem: Problem, stride: int, unit: int) -> int:
    """A stride so that (M, stride) holds M rows and the (P,) float32 T of the positives.

    It grows by a multiple of ``unit``; the T of the positives follow the rows. Near convergence the
    targets are large only at the positives, and the gradient is the small difference between
    targets and probabilities there. 16 bits are too few for it: with them the error of the
    gradients of a converged batch was 600 times as large.
    """
    if problem.kept_dtype != torch.int16 or problem.matrices == 1:
        return stride
    rows = problem.x.shape[0]
    return stride + -(-2 * problem.pairs // (rows * unit)) * unit


def positives_of(kept: Tensor, problem: Problem, stride: int) -> Tensor:
    """The (P,) T of the positives behind the rows in fixed point."""
    return kept[1].view(-1)[len(problem.x) * stride :].view(torch.float32)[: problem.pairs]


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
