"""What is printed last: every file's findings, short, and the second part's readings."""

from time import monotonic

import pytest
import torch

from bench.gpu import headline, parts, sanitizer, summary
from bench.gpu.phases import Run, WrongError
from bench.gpu.results import Results

CPU = torch.device("cpu")
LINE = {
    "milliseconds": {"ours": {"both": 20.5}, "floor": {"both": 14.0}},
    "to_floor": 1.46,
    "share_of_product_8192": 0.6,
    "parts_milliseconds": {
        "statistics": {"statistics": 6.5, "merge": 0.1},
        "gradient": {"dS": 7.0, "dX": 3.0},
    },
}
LAUNCH = {"rows": 64, "cols": 128, "depth": 64, "warps": 4, "stages": 3, "group": 8}


@pytest.fixture
def out(tmp_path):
    def keep(**files):
        for name, found in files.items():
            Results(tmp_path / f"{name}.json").keep(found)
        return tmp_path

    return keep


def test_of_nothing_it_is_empty(tmp_path):
    assert summary.text(tmp_path) == ""


def test_it_has_every_file(out):
    failure = {"test": "a.py::t", "words": "off by 3"}
    counts = {"listed": 9, "ran": 7, "passed": 6, "failed": 1, "skipped": 0}
    race = {"timed": 30, "milliseconds_of_table": 7.0, "best": [{**LAUNCH, "milliseconds": 6.0}]}
    text = summary.text(
        out(
            ceilings={"constants": {"copy": {"value": 3.1e12, "unit": "bytes/s", "how": ""}}},
            right={
                "tests": {**counts, "missing": ["b.py::t"], "first failures": [failure]},
                "memcheck": "no error",
            },
            headline={"lines": {"MFH 32k": LINE, "SigLIP": {"refused": "no time"}}},
            again={"lines": {"MFH 32k": LINE}},
            sweep={
                "compile": {"dS": {"candidates": 40, "right": [LAUNCH] * 38, "faults": [1, 2]}},
                "sweep": {"dS": {"races": [race]}},
                "variants": {"chunks": {"8192 x 8192": 5.0}},
            },
            peers={
                "peers": {"memeff": {"ours_over_theirs": 0.4}, "x": {"refused": "needs a GPU"}},
                "million": {"case": "1M", "seconds": 9.1, "peak_bytes": 4e9, "errors": {}},
            },
        )
    )
    for words in (
        "copy 3.1e+12 bytes/s",
        "7 of 9 tests ran, 6 passed, 1 failed, 0 skipped, 1 missing",
        "FAILED a.py::t: off by 3",
        "MISSING b.py::t",
        "memcheck: no error",
        "MFH 32k: 20.500 ms, floor 14.000 ms (1.46 x), 60% of the 8192-cubed rate",
        "dS 7.00, statistics 6.50, dX 3.00, merge 0.10",
        "SigLIP: no time",
        "again, with the winners",
        "compiled, dS: 38 right and 2 faulty of 40",
        "sweep, dS: 6.000 ms (table 7.000 ms) at 64 x 128 x 64, 4 warps, 3 stages, groups of 8",
        "chunks: 8192 x 8192 5.00 ms",
        "ours takes 0.400 x memeff",
        "million: 1M: 9.10 s, 4.00 GB, checked",
    ):
        assert words in text


def test_it_is_never_too_long(out):
    lines = {f"line {n}": {"refused": "x" * 190} for n in range(100)}
    text = summary.text(out(headline={"lines": lines}))
    assert len(text) < 12_000 - 2_000 and text.endswith("(cut here: the files have the rest)")


# The parts of a step.


def test_parts_of_a_step_add_up_and_have_names():
    a, b = torch.randn(30, 40), torch.randn(40, 20)
    total = torch.zeros(30, 20)

    def step():
        torch.mm(a, b, out=total)
        total.add_(1.0)
        torch.mm(a.T, total)
        total.sin()

    found = parts.measure(step, CPU, repeats=2)
    assert set(found) == {"dX", "dY", "additions", "PyTorch's sin"}
    assert all(seconds > 0 for seconds in found.values())


def test_kernels_of_the_interpreter_have_their_parts(monkeypatch):
    launch = pytest.importorskip("mxm_kernels.backends.triton.launch")
    if not launch.interpreted():
        pytest.skip("needs Triton's interpreter")
    case = next(line.case for line in headline.lines(smoke=True) if line.parts)
    found = headline._parts(case, CPU, 1)
    assert set(found["statistics"]) >= {"statistics", "merge"}
    parts_of = {"dS of kept products", "positives of dS", "gradient of the scale", "dX", "dY"}
    assert set(found["stored_gradient"]) >= parts_of


def test_the_lines_of_a_gpu_have_names_of_their_own():
    lines = headline.lines(smoke=False)
    assert len(lines) == 10 and len({line.name for line in lines}) == 10


# The second part.


def run(tmp_path):
    return Run(tmp_path, CPU, True, Results(tmp_path / "headline.json"), monotonic() + 60)


def test_the_two_slowest_kernels_are_those_of_the_headline(out, tmp_path):
    assert sanitizer.slowest(run(tmp_path)) == ["statistics", "dS"]
    out(headline={"lines": {"MFH 32k": LINE}})
    assert sanitizer.slowest(run(tmp_path)) == ["dS", "statistics"]


def test_counters_are_read_of_ncus_table():
    table = (
        "==PROF== Connected\n"
        '"ID","Kernel Name","gpu__time_duration.sum","lts__t_bytes.sum","dram__bytes.sum",'
        '"sm__inst_executed_pipe_tensor.sum","sm__throughput.avg.pct_of_peak_sustained_elapsed"\n'
        '"","","ns","Gbyte","Mbyte","inst","%"\n'
        '"0","gradient_kernel","7,012","98.1","12.5","1,000","83.1"\n'
    )
    assert sanitizer.read(table)["lts__t_bytes.sum"] == "98.1 Gbyte"
    assert sanitizer.read("==ERROR== no permission\n") == {}


def test_without_the_tools_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name: None)
    of = run(tmp_path)
    sanitizer.memcheck(of)
    sanitizer.counters(of)
    assert of.results.read() == {
        "memcheck": "not run: there is no compute-sanitizer",
        "counters": "not run: there is no ncu",
    }


def test_an_error_of_the_memory_checker_is_red(tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\necho 'Invalid __global__ write'\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setattr(sanitizer.shutil, "which", lambda name: str(tool))
    of = run(tmp_path)
    with pytest.raises(WrongError, match="status 9"):
        sanitizer.memcheck(of)
    assert "Invalid __global__ write" in of.results.read()["memcheck"]


def test_the_program_that_is_checked_runs(monkeypatch, capsys):
    launch = pytest.importorskip("mxm_kernels.backends.triton.launch")
    if not launch.interpreted():
        pytest.skip("needs Triton's interpreter")
    from bench.gpu import forced

    monkeypatch.setattr(forced, "ROWS", 40)
    monkeypatch.setattr(forced, "D", 16)
    monkeypatch.setattr(forced.sys, "argv", ["forced", "cpu"])
    forced.main()
    assert capsys.readouterr().out.count(": right") == len(forced.PHASES)
