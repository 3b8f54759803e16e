"""The benchmark as a user runs it, on batches that take no time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.results_file import read
from mxm_kernels import backends

OURS = backends.choose(
    None, torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.float32
)
ROOT = Path(__file__).parents[2]
# Without the marks of an xdist worker, in which pytest-benchmark times nothing.
ENVIRONMENT = {
    k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET" and not k.startswith("PYTEST_")
}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"  # batches this small only wait for a second thread


def run(*command):
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def test_the_smoke_suite(tmp_path):
    # With "=": pytest would look for its root above every argument that is a path of its own.
    options = ["--bench-suite=smoke", f"--bench-out={tmp_path}", "-p", "no:cacheprovider"]
    exported = tmp_path / "benchmark" / "pytest.json"
    exported.parent.mkdir()
    done = run(
        *(sys.executable, "-m", "pytest", "bench", *options),
        f"--benchmark-json={exported}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.json")
    records = read(path)
    groups = {"large", "rounds", "pairs", "sigmoid", "memory", "kept"}
    assert {r["group"] for r in records} == groups
    timed = {(r["case"]["name"], r["provider"]) for r in records if "seconds" in r}
    assert {provider for _, provider in timed} >= {OURS, "dense eager", "floor"}
    for record in records:
        machine = record["machine"]
        assert machine["cpu"] and machine["versions"]["torch"] and machine["source"]
    # In the terminal and in pytest-benchmark's own file the providers stand apart.
    names = [b["name"] for b in json.loads(exported.read_text())["benchmarks"]]
    assert set(names) == {f"{provider} | {case}" for case, provider in timed}
    assert "dense eager | 24 x 20 x 16" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run for minutes")
def test_the_gpu_script_says_that_there_is_no_gpu(tmp_path):
    done = subprocess.run(
        ["bash", "bench/gpu.sh", str(tmp_path / "out")],
        cwd=ROOT,
        env={**ENVIRONMENT, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 69
    assert "finds no CUDA device through torch; nothing was measured" in done.stderr


def test_the_gpu_script_wants_a_folder():
    done = run("bash", "bench/gpu.sh")
    assert done.returncode == 64 and "usage: bench/gpu.sh OUT" in done.stderr
