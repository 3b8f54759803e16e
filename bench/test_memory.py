"""Peak memory against the batch, beyond inputs and gradients; nothing is timed."""

from __future__ import annotations

from bench.run import broken, memory_record, prepare, refused_record

GROUP = "memory"
PROVIDERS = ("native", "blocked", "triton", "chunked")


def test_memory(memory_case, device, in_time, keep):
    """Measure one step of each provider on one batch."""
    entries, out = prepare((memory_case,), PROVIDERS, device)
    records = [memory_record(GROUP, entry) for entry in entries]
    records += [refused_record(GROUP, *refused) for refused in out]
    keep(records)
    assert not broken(records)
