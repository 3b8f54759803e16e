"""How a budget is spent: what is kept, spans and chunks fit into it, and the least is named."""

import re

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from mxm_kernels.backends.interface import Memory, Problem

plan = pytest.importorskip("mxm_kernels.backends.triton.plan")
chunks = pytest.importorskip("mxm_kernels.backends.triton.chunks")

ROWS = st.integers(1, 300) | st.integers(1, 200_000)
DTYPES = st.sampled_from([torch.float32, torch.float16])  # the interpreter's bfloat16 is float32


def _problem(M: int, N: int, dtype: torch.dtype, teacher: bool, told: bool = False) -> Problem:
    """Features of one number, on the interpreter's device; ``told``: with rules."""
    x, y = (torch.zeros(1, dtype=dtype).expand(n, 16) for n in (M, N))
    nothing = torch.empty(0)
    features = (x, y) if teacher else (None, None)
    scales = nothing, nothing if teacher else None
    return Problem(x, y, *features, *scales, *[nothing] * 6, nothing if told else None)


@given(ROWS, ROWS, DTYPES, st.booleans(), st.booleans(), st.integers(0, 1 << 36))
def test_what_is_kept_fits_beside_a_span_and_a_chunk(M, N, dtype, teacher, told, budget):
    p = _problem(M, N, dtype, teacher, told)
    stride = plan.kept_stride(p, Memory(budget, keep=True))
    if stride is None:
        return
    kept = plan.kept_bytes(p, stride)
    assert stride >= N and kept == (1 + teacher) * M * stride * dtype.itemsize
    assert kept + plan.spans_of(p, plan.most_fields(p)).nbytes <= budget
    height, width = plan.chunk_of(p, Memory(budget), kept, remade=False)
    assert kept + height * chunks.padded(width) * dtype.itemsize <= budget


@given(ROWS, ROWS, DTYPES, st.booleans())
def test_a_large_budget_keeps_everything_and_none_nothing(M, N, dtype, teacher):
    p = _problem(M, N, dtype, teacher)
    assert plan.kept_stride(p, Memory(1 << 50, keep=True)) is not None
    assert plan.kept_stride(p, Memory(1 << 50, keep=False)) is None
    assert plan.kept_stride(p, Memory(0, keep=True)) is None


@given(ROWS, ROWS, DTYPES, st.booleans(), st.booleans(), st.integers(1, 1 << 34))
def test_chunks_fit_where_a_budget_is_not_too_small(M, N, dtype, teacher, told, budget):
    p, memory = _problem(M, N, dtype, teacher, told), Memory(budget)
    try:
        plan.check_budget(p, memory)
    except ValueError as error:
        (least,) = re.findall(r"set_memory_budget\((\d+), 'cpu'\)", str(error))
        assert budget < int(least)
        plan.check_budget(p, Memory(int(least)))
        return
    stored = dtype == torch.float32
    assert plan.spans_of(p, plan.most_fields(p)).nbytes <= budget
    height, width = plan.chunk_of(p, memory, 0, remade=stored)
    entry = 4 * (1 + teacher) if stored else dtype.itemsize
    assert height * chunks.padded(width) * entry <= budget


@given(ROWS, ROWS, DTYPES, st.booleans())
def test_spans_cover_the_columns_in_whole_blocks(M, N, dtype, teacher):
    assume(M * N)
    p = _problem(M, N, dtype, teacher)
    spans = plan.spans_of(p, plan.most_fields(p))
    assert spans.width % chunks.ALIGNMENT == 0
    assert spans.width - chunks.ALIGNMENT < N or spans.width == chunks.ALIGNMENT


@given(DTYPES)
def test_a_filter_decides_by_the_same_products_in_backward(dtype):
    """So nothing is kept in fixed point where there is one."""
    p = _problem(100, 100, dtype, teacher=True)._replace(thresholds=torch.empty(0))
    stride = plan.kept_stride(p, Memory(1 << 40, keep=True))
    assert (stride is None) == (dtype != torch.float32)
