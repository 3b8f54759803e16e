"""The plugin that runs a list of tests: its order, its counts, and what it calls missing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu import listed, right

ROOT = Path(__file__).parents[3]
TESTS = """
import pytest


@pytest.mark.parametrize("n", [1, 2, 3])
def test_numbers(n):
    assert n != 3, "three is wrong"


@pytest.mark.skip(reason="needs a CUDA device")
def test_skipped():
    pass


def test_not_listed():
    raise AssertionError


def test_crash():
    import os
    os._exit(3)
"""


@pytest.fixture
def counts(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)

    def run(*names, options=()):
        (tmp_path / "list.txt").write_text("# what runs\n" + "\n".join(names) + "\n")
        report = tmp_path / "report"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", *options]
        command += ["-p", "no:cacheprovider", "-p", "bench.gpu.listed", "--rootdir", str(tmp_path)]
        command += [f"--listed={tmp_path / 'list.txt'}", f"--listed-report={report}"]
        done = subprocess.run(
            [*command, "test_some.py"],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        return json.loads(report.read_text()), done.stdout

    return run


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["alone", "with workers"])
def test_listed_tests_run_and_are_counted(counts, options):
    found, _ = counts(
        "test_some.py::test_skipped",
        "test_some.py::test_numbers[3]  # fails",
        "test_some.py::test_numbers[1]",
        "test_some.py::test_gone",
        options=options,
    )
    (failure,) = found.pop("first failures")
    assert found == {
        "listed": 4,
        "ran": 3,
        "passed": 1,
        "failed": 1,
        "skipped": 1,
        "missing": ["test_some.py::test_gone"],
    }
    assert failure["test"] == "test_some.py::test_numbers[3]" and "three is" in failure["words"]


def test_they_run_in_the_lists_order(counts):
    names = [f"test_some.py::test_numbers[{n}]" for n in (2, 1)]
    _, printed = counts(*names, options=["-vv"])
    assert re.findall(r"test_numbers\[(\d)\] PASSED", printed) == ["2", "1"]


def test_a_run_that_ends_early_leaves_its_counts(counts):
    found, _ = counts("test_some.py::test_numbers[1]", "test_some.py::test_crash")
    assert (found["listed"], found["ran"], found["passed"], found["failed"]) == (2, 1, 1, 0)


def test_a_file_that_does_not_import_is_red(counts, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "TESTS", "import nothing_of_that_name\n")
    (tmp_path / "test_some.py").write_text("import nothing_of_that_name\n")
    found, _ = counts("test_some.py::test_numbers[1]")
    assert found["failed"] == 1 and "nothing_of_that_name" in found["first failures"][0]["words"]
    assert found["missing"] == ["test_some.py::test_numbers[1]"]


def test_the_device_is_no_part_of_a_name():
    assert listed.plain("a.py::t[x-triton-cuda-1]") == listed.plain("a.py::t[x-triton-cpu-1]")
    assert listed.plain("a.py::t[blocked-cpu]") == "a.py::t[blocked-cpu]"


@pytest.mark.parametrize("smoke", [False, True], ids=["tests.txt", "rehearsed.txt"])
def test_every_test_of_the_lists_exists(smoke):
    text = (Path(right.__file__).parent / right.LISTS[smoke]).read_text()
    names = right.names(text)
    assert len(set(names)) == len(names)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-o", "addopts="]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *right.files(text)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    found = {listed.plain(line) for line in done.stdout.splitlines() if "::" in line}
    assert [name for name in names if name not in found] == []


def test_the_list_is_of_about_150_tests_and_of_none_that_compiles_for_other_targets():
    text = (Path(right.__file__).parent / right.LISTS[False]).read_text()
    assert 140 <= len(right.names(text)) <= 180
    assert "machine_code" not in text
    first = right.names(text)[0]
    assert first.startswith("tests/ops/test_cuda.py")
