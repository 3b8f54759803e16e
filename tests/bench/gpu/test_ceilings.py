"""Every constant is measured, kept as it comes, and what cannot be measured is named."""

import json
import sys

import pytest
import torch

from bench.gpu import ceilings, clock, constants
from bench.gpu.ceilings import OPTIONAL, measure
from bench.gpu.constants import Constants, Found, Unreadable
from bench.models.rates import CHUNKS, CLOCK, S_DEPTHS, read

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAMES = {
    *("multiprocessors", "l2_bytes", "clock", "product_8192", "l2_read", "copy", "add_float32"),
    *("launch", "launch_in_graph", "clock_under_load", "float32_ieee", "float32_tf32"),
    *(f"S_k{K}{out}" for K in S_DEPTHS for out in ("", "_float32")),
    *(f"{side}_{h}x{w}" for h, w in CHUNKS for side in ("dx", "dy")),
}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The command on tiny shapes: its exit code and its file."""
    out = tmp_path_factory.mktemp("ceilings") / "ceilings.json"
    with pytest.MonkeyPatch.context() as patch:
        argv = ["ceilings", "--device", str(DEVICE), "--suite", "smoke", "--out", str(out)]
        patch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            ceilings.main()
    return ended.value.code, out


def test_the_smoke_run_measures_every_constant(smoke):
    code, path = smoke
    results = json.loads(path.read_text())
    assert not code
    assert results["device"]["cpu"] and results["suite"] == "smoke"
    assert results["constants"].keys() | results["missing"].keys() == NAMES
    assert set(results["missing"]) <= set(OPTIONAL), results["missing"]
    for name, found in results["constants"].items():
        assert found["value"] > 0 and found["unit"] and found["how"], name
    assert [path.name] == [p.name for p in path.parent.iterdir()]  # nothing half written


def test_the_prediction_reads_the_smoke_run_and_says_what_it_is(smoke):
    rates = read(smoke[1])
    assert "a rehearsal that predicts nothing" in rates.source
    assert rates.copy > 0 and len(rates.chunks) == len(CHUNKS)
    if DEVICE == CPU:
        assert rates.clock == CLOCK and "which is no GPU" in rates.source


def test_the_command_line_shows_every_constant(smoke, capsys, monkeypatch, tmp_path):
    """And ends with 1 where a constant that the prediction needs is missing."""

    def no_clock():
        raise Unreadable("no clock here")

    def some(self):
        yield "copy", lambda: Found(3e12, "bytes/s", "a test")
        yield "clock", no_clock

    def fewer(self):
        yield "copy", lambda: torch.empty(1).view(2)

    for measurements, code in ((some, False), (fewer, True)):
        monkeypatch.setattr(Constants, "measurements", measurements)
        argv = ["--device", str(DEVICE), "--suite", "smoke", "--out", str(tmp_path / "c.json")]
        monkeypatch.setattr(sys, "argv", ["ceilings", *argv])
        with pytest.raises(SystemExit) as ended:
            ceilings.main()
        assert ended.value.code == code
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["copy", "3e+12", "bytes/s"]
    assert printed[1].split(maxsplit=1) == ["clock", "missing: Unreadable: no clock here"]
    assert printed[2].startswith("copy") and "missing: RuntimeError: shape" in printed[2]


def test_results_are_kept_after_each_constant_and_one_failure_is_not_the_end(monkeypatch):
    def three(self):
        yield "first", lambda: Found(1.0, "s", "a test")
        yield "second", lambda: torch.empty(1).view(2)
        yield "third", lambda: Found(3.0, "s", "a test")

    monkeypatch.setattr(Constants, "measurements", three)
    seen = []
    measure(DEVICE, "smoke", lambda results: seen.append(json.loads(json.dumps(results))))
    assert [list(results["constants"]) for results in seen] == [
        ["first"],
        ["first"],
        ["first", "third"],
    ]
    assert [list(results["missing"]) for results in seen] == [[], ["second"], ["second"]]
    assert seen[-1]["constants"]["third"] == {"value": 3.0, "unit": "s", "how": "a test"}


def test_a_kernel_that_does_not_read_everything_is_an_error(monkeypatch):
    class Lazy:
        def __getitem__(self, grid):
            return lambda data, sums, **options: sums.fill_(data[:-1].sum())

    monkeypatch.setattr(constants, "read_kernel", Lazy())
    ours = Constants(DEVICE, "smoke")
    monkeypatch.setattr(
        ours, "random", lambda *shape, dtype: torch.ones(shape, dtype=dtype, device=DEVICE)
    )
    with pytest.raises(RuntimeError, match="l2_read: expected sums of 4096, got"):
        ours._l2_read()


@pytest.mark.parametrize(
    ("suite", "error", "message"),
    [
        ("large", ValueError, "suite: expected 'full' or 'smoke', got 'large'"),
        ("full", ValueError, "suite: expected 'smoke' on cpu, got 'full', which needs a GPU"),
        ("smoke", RuntimeError, "device: cpu needs TRITON_INTERPRET=1 in the environment"),
    ],
)
def test_what_cannot_run_says_why(suite, error, message, monkeypatch):
    monkeypatch.setattr(ceilings.launch, "interpreted", lambda: False)
    with pytest.raises(error, match=message):
        measure(CPU, suite, lambda results: pytest.fail("nothing can have been measured"))


@pytest.mark.parametrize(("says", "clock_mhz"), [("1755", 1755.0), ("[N/A]", None), (None, None)])
def test_the_clock_that_nvidia_smi_reads(says, clock_mhz, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    if says is not None:
        tool.write_text(f'#!/bin/sh\ntest "$3" = --id=GPU-1 && echo "{says}"\n')
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if clock_mhz is None:
        with pytest.raises(Unreadable, match=r"nvidia-smi --query-gpu=clocks\.sm"):
            constants._read_clock("GPU-1")
    else:
        assert constants._read_clock("GPU-1") == clock_mhz


def test_the_median_of_as_many_calls_as_the_budget_has_room_for(monkeypatch):
    took = iter([9.0, 0.04, 0.05, 3.0, 1.0, 2.0, 5.0, 4.0])  # three of them to warm up
    monkeypatch.setattr(clock, "once", lambda run, device: next(took))
    monkeypatch.setattr(
        clock, "one_after_the_other", lambda calls, device: [clock.once(c, device) for c in calls]
    )
    assert clock.timed(lambda: None, CPU, budget=0.1) == (3.0, 5)  # 0.1 / 0.04 is fewer than five
    monkeypatch.setattr(clock, "once", lambda run, device: 1.0)
    assert clock.timed(lambda: None, CPU, budget=7.0).repeats == 7
    assert clock.timed(lambda: None, CPU, budget=1e9).repeats == clock.MOST


def test_a_call_is_timed_on_this_device():
    a = torch.ones(64, 64, device=DEVICE)
    found = clock.timed(lambda: a @ a, DEVICE, budget=0.0)
    assert found.repeats == clock.FEWEST and 0 < found.seconds < 1
