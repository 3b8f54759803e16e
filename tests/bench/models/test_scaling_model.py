"""The scaling model: its arithmetic, its bytes, and the page that is committed."""

from dataclasses import replace

import pytest

from bench.cases import LARGE, PAPER
from bench.models.scaling_model import (
    ETHERNET,
    FOLDER,
    INFINIBAND,
    NVLINK,
    RANKS,
    Device,
    Network,
    at_peak,
    devices,
    measured,
    page,
    step,
)
from bench.models.traffic import bytes_sent
from bench.results_file import RESULTS
from tests.bench.test_report import record

FREE = Network("free", float("inf"), float("inf"), 0.0, 64, "")
SLOW = Network("slow", 1e6, 4e6, 1e-3, 64, "")
DEVICE = Device("a device", "", 100, 50, 16, True, "bfloat16", 0.25, 0.75, (FREE,))


def test_the_committed_page_is_that_of_the_committed_records():
    text = (FOLDER / "model.md").read_text()
    assert text == page(RESULTS), "run `make bench-report`"
    assert text.startswith("*A model, not a measurement over several devices.*")
    assert text.count("model, not measured") == 1
    assert (FOLDER / "weak_scaling.svg").exists()


@pytest.mark.parametrize("ranks", RANKS)
def test_free_communication_leaves_compute(ranks):
    made = step(DEVICE, ranks)
    assert made.compute == ranks * 1.0
    for gather in ("all", "ring"):
        assert made.total[gather] == pytest.approx(made.compute)
        assert made.efficiency(gather) == pytest.approx(1)


def test_one_rank_sends_nothing():
    made = step(replace(DEVICE, networks=(SLOW,)), 1)
    assert made.sent == {"all": 0, "ring": 0}
    assert made.total == {"all": 1.0, "ring": 1.0}


@pytest.mark.parametrize("gather", ["all", "ring"])
def test_the_bytes_are_those_that_the_package_counts(gather):
    expected = bytes_sent(
        (100,) * 4, (50,) * 4, 0, width=16, teacher_width=16, feature_bytes=2, gather=gather
    )
    assert step(DEVICE, 4).sent[gather] == sum(expected.values())


def test_an_all_gather_by_hand():
    """Three ranks of 50 texts and 32 features of 2 bytes, gathered at 4 MB/s, exchanged at 1."""
    gathered = 2 * 50 * 32 * 2 + 2 * 150 * 8 + 2 * 5 * 8  # features, ids, agreement
    gradients = 100 * 16 * 2
    columns = (100 * 3 + 2 * 50 * 2) * 4
    loss = 2 * (2 * 2 * 4 // 3)
    seconds = 3 + gathered / 4e6 + (gradients + columns + loss) / 1e6 + 13 * 2 * 1e-3
    assert step(replace(DEVICE, networks=(SLOW,)), 3).total["all"] == pytest.approx(seconds)


def test_a_ring_by_hand():
    """The same, with compute so fast that every block is waited for."""
    fast = replace(DEVICE, forward=1e-9, backward=1e-9, networks=(SLOW,))
    block, gradient = 50 * 32 * 2, 50 * 16 * 4
    rest = (2 * 150 * 8 + 2 * 5 * 8) / 4e6 + ((100 * 3 + 200) * 4 + 2 * (16 // 3)) / 1e6
    seconds = 2 * (block / 1e6 + 1e-3) + 2 * ((block + gradient) / 1e6 + 2e-3)
    seconds += gradient / 1e6 + 1e-3 + rest + 20e-3
    assert step(fast, 3).total["ring"] == pytest.approx(seconds, rel=1e-6)


def test_nothing_is_faster_than_its_compute():
    for device in devices(RESULTS):
        for ranks in RANKS:
            made = step(device, ranks)
            assert all(0 < made.efficiency(gather) <= 1 for gather in ("all", "ring"))


def test_the_largest_record_is_the_input():
    floor, ours = record("large", LARGE, "floor", 1.0), record("large", LARGE, "native", 2.0)
    paper = record("paper", PAPER, "native", 0.002)
    device = measured([paper, floor, ours])
    assert (device.M, device.N, device.forward, device.networks) == (4920, 4100, 2.0, (ETHERNET,))
    assert measured([floor]) is None
    ours["machine"] = ours["machine"] | {"gpu": "A GPU"}
    assert measured([ours]).name == "A GPU"


def test_more_ranks_than_a_node_has_need_the_network_between_nodes():
    assert at_peak().network(8) is NVLINK
    assert at_peak().network(16) is INFINIBAND
    assert "not measured" in at_peak().name
