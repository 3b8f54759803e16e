"""A ceilings file with every constant, for tests of what reads one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.models.rates import BY_K, CHUNKS, COPY, CUBED, L2_STREAM, PROCESSORS, S_DEPTHS


def content(gpu: str | None = "A GPU", suite: str = "full", **values: Any) -> dict[str, Any]:
    """The documented constants as if measured, but for ``values``; None leaves a constant out."""
    found: dict[str, Any] = {
        "multiprocessors": PROCESSORS, "clock": 1.9e9, "clock_under_load": 1.7e9,
        "product_8192": CUBED, "copy": COPY, "add_float32": COPY, "l2_read": L2_STREAM,
        "launch_in_graph": 1e-6,
    }  # fmt: skip
    found |= {f"S_k{K}": BY_K[K] * CUBED for K in S_DEPTHS}
    found |= {f"{side}_{h}x{w}": 700e12 for h, w in CHUNKS for side in ("dx", "dy")}
    found |= values
    constants = {
        name: {"value": value, "unit": "", "how": "a test"}
        for name, value in found.items()
        if value is not None
    }
    return {"device": {"gpu": gpu, "cpu": "A CPU"}, "suite": suite, "constants": constants}


def write(path: Path, **options: Any) -> Path:
    """``content`` in a file."""
    path.write_text(json.dumps(content(**options)))
    return path
