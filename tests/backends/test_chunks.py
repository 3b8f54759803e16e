"""Chunks of dS: they cover the plane once, fit the workspace, and are near square."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from mxm_kernels.backends.triton.chunks import (
    ALIGNMENT,
    LEAST_ROWS,
    MOST_ROWS,
    chunk_shape,
    padded,
    spans,
)

LENGTHS = st.integers(1, 300) | st.integers(1, 10**6)
BYTES = st.integers(1, 1 << 16) | st.integers(1, 1 << 31)
GPU_BYTES = st.integers(256 << 20, 1 << 30)


def _assert_covers(parts, length):
    assert parts[0][0] == 0
    assert parts[-1][1] == length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert all(first < last for first, last in parts)


@given(LENGTHS, LENGTHS, st.sampled_from([2, 4]), BYTES)
def test_chunks_cover_the_plane_once_and_fit(rows, cols, itemsize, workspace):
    height, width = chunk_shape(rows, cols, itemsize, workspace)
    assert height * padded(width) * itemsize <= max(workspace, ALIGNMENT * itemsize)
    for length, most in ((rows, height), (cols, width)):
        parts = spans(length, most)
        _assert_covers(parts, length)
        sizes = [last - first for first, last in parts]
        assert max(sizes) <= most
        assert max(sizes) - min(sizes) <= 2 * ALIGNMENT


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from([2, 4]), GPU_BYTES)
def test_chunks_have_thousands_of_rows_where_the_matrix_has_them(rows, cols, itemsize, workspace):
    height, width = chunk_shape(rows, cols, itemsize, workspace)
    if (height, width) == (rows, cols):
        return  # all of dS at once
    heights = [last - first for first, last in spans(rows, height)]
    assert max(heights) <= MOST_ROWS
    assert min(heights) >= min(rows, LEAST_ROWS)
    widths = [last - first for first, last in spans(cols, width)]
    assert min(widths) >= min(cols, 1920)  # half of the 4,096 x 16,384 of 256 MiB in float32


@given(st.integers(8192, 10**6), st.sampled_from([256 << 20, 1 << 30]))
def test_chunks_of_a_square_are_near_square(rows, workspace):
    height, width = chunk_shape(rows, rows, 2, workspace)
    assert max(height, width) <= 3 * min(height, width)


@given(LENGTHS, LENGTHS, BYTES)
def test_every_chunk_but_the_last_has_whole_blocks(rows, cols, workspace):
    height, width = chunk_shape(rows, cols, 2, workspace)
    if height >= ALIGNMENT:
        assert all(last % ALIGNMENT == 0 for _, last in spans(rows, height)[:-1])
    assert all(last % ALIGNMENT == 0 for _, last in spans(cols, width)[:-1])
