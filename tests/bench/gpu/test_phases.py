"""How phases are run: bounded, apart from each other, red where something is wrong."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from bench.gpu import __main__ as program
from bench.gpu import phases
from bench.gpu.phases import Phase, Run, WrongError
from bench.gpu.results import Results

CPU = torch.device("cpu")


def run(what, out, seconds=20.0):
    phase = Phase("a phase", seconds, seconds, "a.json", what)
    return program.run_phase(phase, out, CPU, smoke=True, seconds=seconds)


def test_a_phase_that_ends(tmp_path):
    assert run(lambda run: run.keep({"found": 1}), tmp_path) == "done"
    assert Results(tmp_path / "a.json").read() == {"found": 1}


def test_where_a_fork_cannot_reach_the_gpu_a_fresh_process_runs_the_phase(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "_touched", lambda device: True)
    phase = phases.table()[1][0]
    assert program.run_phase(phase, tmp_path, CPU, smoke=True, seconds=60.0) == "done"
    assert Results(tmp_path / phase.file).read() == {
        "memcheck": "not run: there is no compute-sanitizer"
    }


def test_what_a_phase_prints_is_in_the_log(tmp_path, capfd):
    run(lambda run: print("words"), tmp_path)
    assert "=== a phase\nwords\n" in (tmp_path / "all.log").read_text()
    assert capfd.readouterr().out == ""


def test_a_phase_that_fails_or_is_wrong_or_crashes(tmp_path):
    def fails(run):
        raise ValueError("no more tiles")

    def wrong(run):
        raise WrongError("dX is off")

    assert run(fails, tmp_path) == "failed, see all.log"
    assert run(wrong, tmp_path) == "found something wrong"
    assert run(lambda run: os._exit(9), tmp_path) == "ended with status 9"
    log = (tmp_path / "all.log").read_text()
    assert "no more tiles" in log and "wrong: dX is off" in log


def test_the_bound_ends_a_phase_and_whatever_it_started_and_keeps_its_results(tmp_path):
    marker = tmp_path / "late"

    def slow(run):
        run.keep({"first": 1})
        subprocess.run(
            [sys.executable, "-c", f"import time; time.sleep(3); open({str(marker)!r}, 'w')"]
        )

    began = time.monotonic()
    assert run(slow, tmp_path, seconds=1.0) == "cut off after 1 s"
    assert time.monotonic() - began < 2.5
    assert Results(tmp_path / "a.json").read() == {"first": 1}
    time.sleep(2.5)
    assert not marker.exists()


def test_results_are_merged_and_replaced_by_rename(tmp_path):
    results = Results(tmp_path / "a.json")
    results.keep({"a": 1, "b": 2})
    results.keep({"b": 3})
    assert results.read() == {"a": 1, "b": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ValueError, match="JSON"):
        results.keep({"a": float("nan")})
    assert results.read() == {"a": 1, "b": 3}


def test_the_time_of_the_first_part_and_of_the_second():
    first, second = phases.table()
    assert sum(phase.seconds for phase in first) == 420
    assert sum(phase.seconds for phase in second) == 150
    assert sum(phase.rehearsed for phase in first + second) <= 200
    files = {phase.file for phase in first + second} | {"tune.json", "all.log"}
    assert len(files) == 8


@pytest.fixture
def main(monkeypatch, tmp_path, capsys):
    """The program, with phases of a test's own."""

    def call(first, second=(), arguments=()):
        made = [
            tuple(Phase(name, 5, 5, f"{name}.json", what) for name, what in part.items())
            for part in (first, dict(second))
        ]
        monkeypatch.setattr(program, "table", lambda: tuple(made))
        monkeypatch.setattr(sys, "argv", ["gpu", str(tmp_path), *arguments, "--device=cpu"])
        status = program.main()
        return status, capsys.readouterr().out

    return call


def nothing(run):
    pass


def wrong(run):
    raise WrongError("no")


def test_a_wrong_phase_is_red_and_the_others_still_run(main, tmp_path):
    status, printed = main({"one": wrong, "two": nothing}, {"three": nothing})
    assert status == 1
    assert "one: found something wrong" in printed and "two: done" in printed
    assert printed.rstrip().endswith("RED: one")
    assert Results(tmp_path / "two.json").read()["two ended"].startswith("done")


def test_a_phase_that_is_cut_off_is_not_red(main, monkeypatch):
    def slow(run):
        time.sleep(20)

    monkeypatch.setattr(program, "Phase", Phase)
    status, printed = main({"one": slow, "two": nothing})
    assert status == 0 and "one: cut off after 5 s" in printed


def test_the_second_part_waits_for_time_or_its_own_command(main, monkeypatch):
    monkeypatch.setattr(program, "TOTAL", 10.0)
    status, printed = main({"one": nothing}, {"two": wrong})
    assert status == 0 and "two:" not in printed.replace("two ended", "")
    monkeypatch.setattr(program, "TOTAL", 100.0)
    status, printed = main({"one": nothing}, {"two": wrong}, ["second"])
    assert status == 1 and "one:" not in printed and "two: found something wrong" in printed


def test_a_run_knows_what_is_left(tmp_path):
    of = Run(tmp_path, CPU, True, Results(tmp_path / "a.json"), time.monotonic() + 10)
    assert 8 < of.left < 9.1
    assert replace(of, ends=time.monotonic()).left < 0
    assert of.other("b.json") == {}
