"""The committed launches of every loss are those that are counted, and eager's loss is ours."""

from pathlib import Path

import pytest
import torch

from bench.studies.loss_launches import LOSSES, counts, option_counts, page, steps
from mxm_kernels import backends

COMMITTED = Path(__file__).parents[3] / "bench" / "results" / "loss_launches.md"


@pytest.fixture(autouse=True)
def plain_memory(poisoned_memory):
    """Without what the tests add to poison empty memory: its fills would be counted."""
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", LOSSES)
def test_eager_computes_the_same_loss(name):
    fused, dense = steps(name, "blocked")
    torch.testing.assert_close(fused(), dense())


def test_the_committed_counts():
    if torch.cuda.is_available():
        pytest.skip("counted from the calls on a CPU, under Triton's interpreter")
    if backends.load("triton").unavailable(torch.device("cpu"), torch.float32) is not None:
        pytest.skip("no Triton here")
    assert page(counts(), option_counts()) == COMMITTED.read_text()
