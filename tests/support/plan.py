"""Spans and chunks of the Triton backend on batches that would have one of each."""

from __future__ import annotations

import pytest


def in_small_parts(patch: pytest.MonkeyPatch, interpreted: bool) -> None:
    """The smallest spans of the statistics, and the smallest chunks of dS.

    They have 128 columns on a GPU, and 16, a tile of the interpreter's, where interpreted.
    """
    from mxm_kernels.backends.triton import chunks, plan

    if interpreted:
        patch.setattr(chunks, "ALIGNMENT", 16)
        patch.setattr(plan, "ALIGNMENT", 16)
        patch.setattr(plan, "LEAST_CHUNK", 16 * 16)
    for most in ("MOST_SCRATCH", "MOST_PRODUCTS", "MOST_WORKSPACE"):
        patch.setattr(plan, most, 1)
