"""A step of a small batch stays cheap: its calls and launches are counted, not timed."""

import pytest
import torch

from bench.calls import count, launches, step
from mxm_kernels import backends

MOST = {"native": (114, 32), "blocked": (462, 124)}  # calls, allocations; torch 2.11 makes 2 more


@pytest.fixture(autouse=True)
def plain_memory(poisoned_memory):
    """Without what the tests add to poison empty memory: its fills would be counted."""
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", MOST)
def test_calls_of_a_step(name):
    reason = backends.load(name).unavailable(torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.skip(reason)
    calls, allocations = count(step(name, rows=(42, 35), dimension=16))
    assert 0 < calls <= MOST[name][0]
    assert 0 < allocations <= MOST[name][1]


def test_launches_of_a_step():
    """Forward: the draw 2, statistics 2, losses 2. Backward 8.

    Those are autograd's 1, losses 1, upstream gradients raised 1, dS 2, products 2, the scale 1.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if backends.load("triton").unavailable(torch.device(device), torch.float32) is not None:
        pytest.skip("no Triton here")
    small = {} if device == "cuda" else {"rows": (42, 35), "dimension": 16}
    assert launches(step("triton", device=device, **small), device) == 17
