"""The bound on peak memory, by hand."""

import pytest

from bench.targets import over_promise

MIB = 1 << 20


def record(peak, gpu="H100", memory=80 * 10**9, **case):
    fields = {"M": 65_536, "N": 65_536, "D": 768, "dtype": "bfloat16", "captions": 1}
    machine = {"gpu": gpu, "memory_bytes": memory}
    return {
        "provider": "triton", "case": fields | case, "machine": machine, "peak_bytes": peak
    }  # fmt: skip


def fraction(*arguments, **case):
    (found,) = over_promise("triton")([record(*arguments, **case)])
    return found


# Workspace, 3 / 32 of it, 2 N D of dY beyond dY's own 2 N D, and 4 D of 16,384 and 32,768 rows.
HAND = 1024 + 96 + 96 + 48 + 96
LINEAR = (110 + 2 * 64) * 65_536 / MIB


def test_the_promise_by_hand():
    assert fraction(MIB) == pytest.approx(1 / (HAND + LINEAR))
    assert fraction(MIB, sigmoid=True) == pytest.approx(1 / (HAND + LINEAR + 192))


def test_a_small_batch_has_the_workspace():
    linear = 110 * 420 * 5 + 64 * 770
    small = {"M": 420, "N": 350, "captions": 5}
    assert fraction(MIB, **small) == pytest.approx(MIB / (1024 * MIB + linear))
    assert fraction(MIB, "T4", 16 * 10**9, **small) == pytest.approx(MIB / (256 * MIB + linear))
    assert fraction(MIB, None, **small) == pytest.approx(MIB / (256 * MIB + linear))


def test_other_providers_promise_nothing():
    assert not list(over_promise("native")([record(MIB)]))
