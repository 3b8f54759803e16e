"""A step of a small batch stays cheap: its calls are counted, not timed."""

import pytest
import torch

from bench.calls import count, step
from mxm_kernels import backends

MOST = {"native": (160, 60), "blocked": (460, 130)}  # calls, allocations


@pytest.mark.parametrize("name", MOST)
def test_calls_of_a_step(name):
    reason = backends.load(name).unavailable(torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.skip(reason)
    calls, allocations = count(step(name, rows=(42, 35), dimension=16))
    assert 0 < calls <= MOST[name][0]
    assert 0 < allocations <= MOST[name][1]
