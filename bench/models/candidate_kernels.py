"""The launches that tuning tries on sm_90, in 16 bits, as configurations for the compiler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

from bench.models.shipped_kernels import DTYPES, configurations
from mxm_kernels.backends.triton.candidates import candidates
from mxm_kernels.backends.triton.settings import Cell, Target

TARGET: Target = "sm_90"
DTYPE = "bf16"
SHARED = 227 << 10  # bytes of shared memory that a program may have there
# Kernels with candidates of their own, in the variant that keeps, or reads what is kept.
_NOT_TRIED = "diagnostics", "pointers", "neg_sum", "told"
_KEPT = {"statistics": True, "gradient": True, "sigmoid_gradient": False, "stored_gradient": True}


def candidate_configurations() -> Iterator[dict[str, Any]]:
    """Each kernel in each launch of the list, the table's own among them."""
    for config in configurations([TARGET]):
        name = config["kernel"]
        plain = config["dtype"] == DTYPE and not any(config[k] for k in _NOT_TRIED)
        if plain and config["kept"] == _KEPT.get(name):
            cell = Cell(name, DTYPES[DTYPE], config["teacher"], 768, 16_384)
            for launch in candidates(cell, TARGET, SHARED):
                yield {**config, "launch": list(astuple(launch))}
