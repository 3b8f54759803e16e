"""Peak memory against the batch, beyond inputs and gradients; nothing is timed."""

from __future__ import annotations

import pytest

from bench.cases import OURS, memory_suite
from bench.run import memory_record, prepare, refused_record

GROUP = "memory"
PROVIDERS = (*OURS[:3], "dense eager", "chunked")


@pytest.mark.parametrize("index", range(4))
def test_memory(index, device, in_time, keep):
    """Measure one step of each provider on one batch."""
    cases = memory_suite(device)
    if index >= len(cases):
        pytest.skip("no such batch")
    entries, out = prepare((cases[index],), PROVIDERS, device)
    keep(
        [memory_record(GROUP, entry) for entry in entries]
        + [refused_record(GROUP, *refused) for refused in out]
    )
