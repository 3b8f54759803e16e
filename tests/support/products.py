"""How many matrix products a computation runs."""

from __future__ import annotations

from collections.abc import Callable

import torch


def matrix_products(run: Callable[[], object]) -> int:
    """Products that PyTorch ran during ``run``; those inside a Triton kernel are not seen."""
    with torch.profiler.profile() as profile:
        run()
    return sum(e.count for e in profile.key_averages() if e.key in ("aten::mm", "aten::addmm_"))
