"""Groups become records: interleaved, with reasons for what is missing."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from bench import run, timing
from bench.cases import Case, Group
from bench.providers import chunked, dense
from bench.providers.provider import Provider
from bench.timing import MOST_REPEATS, schedule, summary

CPU = torch.device("cpu")
CASE = Case(12, 10, 8, rounds=2)


class Rounds:
    """Stands for pytest-benchmark's fixture."""

    stats = None

    def pedantic(self, target, setup, rounds, iterations):
        for _ in range(rounds):
            arguments, _ = setup()
            target(*arguments)


def _fails(batch, selection):
    raise RuntimeError("no such kernel")


PROVIDERS = [
    *dense.PROVIDERS[:1],
    *chunked.PROVIDERS,
    Provider("wrong", lambda batch, selection: dense._eager(batch, selection) * 2),
    Provider("fails", _fails),
    Provider("huge", dense._eager, workspace=lambda case: 1 << 60),
    Provider("other", dense._eager, refuses=lambda case, device: "does not compute this loss"),
]


@pytest.fixture(scope="module")
def records():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(run, "matching", lambda prefixes, case: PROVIDERS)
        group = Group("tiny", (CASE,), seconds=0.05)
        return {r["provider"]: r for r in run.run_group(group, CPU, Rounds())}


def test_who_passes_is_timed_and_measured(records):
    for name in ("dense eager", "chunked PyTorch"):
        record = records[name]
        assert record["gate"]["errors"]["loss"]["error"] <= 1e-3
        for phase in ("forward", "backward", "both"):
            s = record["seconds"][phase]
            assert 0 < s["q10"] <= s["median"] <= s["q90"]
            assert record["to_floor"][phase] > 0 and record["to_dense"][phase] > 0
        assert record["peak_bytes"] > 0 and record["repeats"] >= 3
    assert records["dense eager"]["to_dense"]["both"] == 1
    assert records["floor"]["to_floor"]["both"] == 1
    assert records["floor"]["block_height"] == 12


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("wrong", "wrong answer: loss: error"),
        ("fails", "failed: RuntimeError: no such kernel"),
        ("huge", "does not fit: about 1152921505 GB"),
        ("other", "does not compute this loss"),
    ],
)
def test_who_does_not_pass_has_a_reason_and_no_time(records, name, reason):
    assert records[name]["refused"].startswith(reason)
    assert "seconds" not in records[name] and "peak_bytes" not in records[name]


def test_a_backend_of_ours_that_fails_or_is_wrong_is_named():
    record = run.refused_record("tiny", CASE, "blocked", "wrong answer: loss")
    assert run.broken([record]) == [f"blocked on {CASE.name}: wrong answer: loss"]
    record["refused"] = "it needs a GPU"
    assert run.broken([record]) == []
    assert run.broken([{**record, "provider": "memeff", "refused": "failed: x"}]) == []


def test_threads_are_those_of_the_case_and_come_back(monkeypatch):
    monkeypatch.setattr(run, "matching", lambda prefixes, case: dense.PROVIDERS[:1])
    before, seen = torch.get_num_threads(), []
    original = timing.Entry.run
    monkeypatch.setattr(
        timing.Entry, "run", lambda e: (seen.append(torch.get_num_threads()), original(e))[1]
    )
    group = Group("threads", (Case(12, 10, 8, threads=2),), seconds=0.01)
    found = run.run_group(group, CPU, Rounds())
    assert set(seen) == {2} and torch.get_num_threads() == before == 1
    assert {r["threads"] for r in found} == {2}


def test_the_schedule_spreads_every_entry_over_the_whole():
    order = schedule([0.01, 1.0, 0.02], budget=6.0, fewest=3)
    counts = Counter(order)
    assert counts == {0: MOST_REPEATS, 1: 3, 2: 100}
    slow = [place for place, index in enumerate(order) if index == 1]
    assert all(len(order) / 6 < b - a < len(order) / 2 for a, b in pairwise(slow))


def test_quantiles():
    found = summary([float(n) for n in range(11)])
    assert found == pytest.approx({"median": 5, "q10": 1, "q90": 9})
