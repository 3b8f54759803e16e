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


@pytest.fixture(scope="module")
def counted():
    """The launches of the losses, and of MFH with each option."""
    if torch.cuda.is_available():
        pytest.skip("counted from the calls on a CPU, under Triton's interpreter")
    if backends.load("triton").unavailable(torch.device("cpu"), torch.float32) is not None:
        pytest.skip("no Triton here")
    return counts(), option_counts()


def test_the_committed_counts(counted):
    assert page(*counted) == COMMITTED.read_text()


# Losses that compute more than a formula of one list: targets, or a softmax of their own.
MORE = {"CWCL", "self-distillation of every row", "intra-modal", "intra-modal, soft"}


def test_launches_of_a_loss_are_bounded(counted):
    found = {name: c.ours for name, c in counted[0].items()}
    assert set(found) >= MORE
    assert {n: c for n, c in found.items() if c > (26 if n in MORE else 15)} == {}


# Options and further runs of the operator, where a line of the table has not one and none.
OPTIONS_AND_RUNS = {
    "none": (0, 0),
    "teacher_dtype": (2, 0),
    "image_weights and text_weights": (2, 0),
    "a scale for each row": (1, 1),
    "text_queue": (1, 1),
    "both queues": (2, 2),
}


def test_launches_of_an_option_are_bounded(counted):
    """4 for an option, 12 for each further run."""
    found = counted[1]
    assert set(found) >= set(OPTIONS_AND_RUNS)
    allowed = {name: OPTIONS_AND_RUNS.get(name, (1, 0)) for name in found}
    more = {name: count - found["none"] for name, count in found.items()}
    assert {n: c for n, c in more.items() if c > 4 * allowed[n][0] + 12 * allowed[n][1]} == {}
