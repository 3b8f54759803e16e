"""The bound on peak memory, by hand."""

import pytest

from bench.ratios import over_promise

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


# The budget of a card of 80 GB, and float32 sums of 65,536 rows of dY and 16,384 of dX.
HAND = 4096 + 192 + 48
LINEAR = (110 + 2 * 64) * 65_536 / MIB


def test_the_promise_by_hand():
    assert fraction(MIB) == pytest.approx(1 / (HAND + LINEAR))
    assert fraction(MIB, sigmoid=True) == pytest.approx(1 / (HAND + LINEAR + 192))
    assert fraction(MIB, budget=16 << 30) == pytest.approx(1 / (HAND + 12 * 1024 + LINEAR))


def test_a_small_batch_has_the_budget():
    linear = 110 * 420 * 5 + 64 * 770 + 4 * 768 * (350 + 420)
    small = {"M": 420, "N": 350, "captions": 5}
    assert fraction(MIB, **small) == pytest.approx(MIB / (4096 * MIB + linear))
    assert fraction(MIB, "T4", 16 * 10**9, **small) == pytest.approx(MIB / (10**9 + linear))
    assert fraction(MIB, None, **small) == pytest.approx(MIB / (64 * MIB + linear))


def test_other_providers_promise_nothing():
    assert not list(over_promise("native")([record(MIB)]))
