"""Forward, backward, both, and peak memory of every provider: one test for each group.

Nothing fails here for being slow; a backend of ours that fails or is wrong does.
"""

from __future__ import annotations

from bench.run import broken, run_group


def test_speed(group, device, in_time, benchmark, keep):
    """Time the group interleaved and write its records."""
    records = run_group(group, device, benchmark)
    keep(records)
    assert not broken(records)
