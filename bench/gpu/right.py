"""Phase 2: a named list of tests on the Triton backend, those first that only a GPU decides.

``tests.txt`` beside this file is the list, ``rehearsed.txt`` that of a rehearsal. A run that the
bound cuts off says "k of n ran" and is not red; a test that fails is, and so is one that the list
names and nothing collects.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from bench.gpu.accumulation import accumulation_probe
from bench.gpu.phases import Run, WrongError
from bench.gpu.results import Results

LISTS = {False: "tests.txt", True: "rehearsed.txt"}
WORKERS = 8


def phase(run: Run) -> None:
    """The tests beside each other, then the probe of sums in place."""
    counts = tests(run, 0.9 * run.left)
    run.keep({"tests": counts})
    probe = accumulation_probe(run.device)
    run.keep({"sums in place": probe})
    if counts["failed"] or counts["missing"]:
        raise WrongError(f"{counts['failed']} tests failed, {len(counts['missing'])} are missing")


def tests(run: Run, seconds: float) -> dict:
    """Run the list for so long; what the plugin counted."""
    listed = Path(__file__).parent / LISTS[run.smoke]
    report = run.out / "all.log.tests"
    command = [
        *(sys.executable, "-m", "pytest", "-q"),
        # Without addopts: settings of plugins that need not be there are errors there.
        *("-o", "addopts=", "-p", "no:cacheprovider", "-p", "bench.gpu.listed"),
        *(f"--listed={listed}", f"--listed-report={report}"),
        *files(listed.read_text()),
    ]
    if find_spec("xdist") is not None:
        # "load" hands out a few tests at a time, so what is first in the list runs first.
        command += ["-n", str(2 if run.smoke else WORKERS), "--dist", "load"]
    try:
        subprocess.run(command, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        print(f"the tests were stopped after {seconds:.0f} s")
    if not report.exists():
        raise WrongError("pytest ended before it collected the tests")
    counts = Results(report).read()
    report.unlink()
    return counts


def names(text: str) -> list[str]:
    """The tests of a list; # begins a comment."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def files(text: str) -> list[str]:
    """Their files, each once."""
    return list(dict.fromkeys(name.partition("::")[0] for name in names(text)))
