"""Forward, backward, both, and peak memory of every provider: one test for each group.

A group that finishes passes: nothing here fails for being slow.
"""

from __future__ import annotations

from bench.run import run_group


def test_speed(group, device, in_time, benchmark, keep):
    """Time the group interleaved and write its records."""
    benchmark.group = "interleaved"
    records = run_group(group, device, benchmark)
    keep(records)
    # pytest-benchmark's own statistics mix the providers; these tell them apart.
    benchmark.extra_info["records"] = records
