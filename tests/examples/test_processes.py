"""Several processes of examples.finetune train one batch: they have one process's losses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from examples.files import read_json
from examples.finetune.retrieval import METRICS

ROOT = Path(__file__).parents[2]
# Twelve instances of 2 to 4 images and 1 to 3 captions: two epochs of two batches of six.
COMMON = {"batch_size": 6, "epochs": 2, "checkpoint_every": 2, "cpu": True, "lr": 1e-3}
RUNS = {
    "mfh": {},
    "expectation": {"rounds": 0},
    "clip": {"loss": "clip"},
    "cached": {"micro_batch": 4},
    "whole": {"batch_size": 72},  # more than the instances: all of them in every batch
    "ended": {"max_steps": 3},
}


def start(folder, plan, processes):
    """Start a plan of options by name in so many processes."""
    options = [{"output_dir": str(folder / name), **more} for name, more in plan.items()]
    for one in options:
        Path(one["output_dir"]).mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(options))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*torchrun, "-m", "tests.support.tiny_processes", str(folder / "plan.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, *command]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def launch(folder, plan, processes):
    """Run a plan to its end; of each run what its ranks wrote."""
    running = start(folder, plan, processes)
    _, said = running.communicate(timeout=500)
    assert running.returncode == 0, said
    return {name: outcomes(folder / name, processes) for name in plan}


def outcomes(folder, processes):
    return [json.loads((folder / f"rank_{r}.json").read_text()) for r in range(processes)]


# Of two processes only. Dropout draws of its own in each, so that no other number has these.
WITH_DROPOUT = {name: {**RUNS[name], "dropout": True} for name in ("mfh", "cached", "clip")}
WRONG = {"uneven": {"batch_size": 5}, "broken": {"broken_rank": 1}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder and outcomes of all runs by number of processes."""
    folder, plan = tmp_path_factory.mktemp("runs"), {n: {**COMMON, **r} for n, r in RUNS.items()}
    two = {f"{name} with dropout": {**COMMON, **run} for name, run in WITH_DROPOUT.items()}
    two |= {name: {**COMMON, **run} for name, run in WRONG.items()}  # the broken one is the last
    plans = {1: plan, 2: plan | two, 3: plan}
    for processes in plans:
        (folder / str(processes)).mkdir()
    return {w: (folder / str(w), launch(folder / str(w), plans[w], w)) for w in plans}


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", RUNS)
def test_processes_have_the_numbers_of_one(runs, name, processes):
    (one_folder, one), (folder, several) = runs[1], runs[processes]
    (want,) = one[name]
    assert len(want["losses"]) == {"ended": 3, "whole": 2}.get(name, 4)
    assert len(set(want["losses"])) == len(want["losses"])
    for got in several[name]:
        assert got["world"] == got["processes"] == processes
        torch.testing.assert_close(got["losses"], want["losses"], rtol=1e-5, atol=1e-6)
        assert got["losses"] == several[name][0]["losses"]
        for when in ("before", "after"):
            assert got[when] == several[name][0][when]
            for direction, metrics in want[when].items():
                assert set(metrics) == set(METRICS)
                assert got[when][direction] == pytest.approx(metrics, abs=1e-3)
    steps = len(want["losses"])
    for file in ("model.safetensors", f"checkpoints/checkpoint_{steps}/model_1.safetensors"):
        if (one_folder / name / file).exists():  # CLIP has no teacher
            assert_close_weights(folder / name / file, one_folder / name / file)


def assert_close_weights(got, want):
    weights, expected = (load_file(path) for path in (got, want))
    assert weights.keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(weights[key], weight, rtol=1e-4, atol=1e-5)


def test_the_main_process_writes_what_every_rank_found(runs):
    folder, several = runs[2]
    for name in RUNS:
        metrics = json.loads((folder / name / "metrics.json").read_text())
        first = several[name][0]
        assert metrics == {key: value for key, value in first.items() if key != "world"}
        last = folder / name / "checkpoints" / f"checkpoint_{len(first['losses'])}"
        run = json.loads((last / "run.json").read_text())
        assert run["processes"] == 2
        assert {"random_states_0.pkl", "random_states_1.pkl"} <= set(run["files"])
        assert not list((folder / name).rglob(".writing_*"))


def test_every_rank_goes_on_from_a_checkpoint(tmp_path, runs):
    """With dropout, whose draws are those of the step and the rank; and not from another's."""
    whole = runs[2][1]
    for name in WITH_DROPOUT:
        shutil.copytree(runs[2][0] / f"{name} with dropout", tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints" / "checkpoint_4")
        (tmp_path / name / "model.safetensors").unlink()
    shutil.copytree(runs[1][0] / "mfh", tmp_path / "of one")
    plan = {name: {**COMMON, **run} for name, run in WITH_DROPOUT.items()} | {"of one": COMMON}
    again = launch(tmp_path, plan, 2)
    for name in WITH_DROPOUT:
        uninterrupted = whole[f"{name} with dropout"]
        for got, want in zip(again[name], uninterrupted, strict=True):
            assert got["losses"] == want["losses"] == uninterrupted[0]["losses"]
            assert got["after"] == want["after"]
        files = (runs[2][0] / f"{name} with dropout", tmp_path / name)
        want, got = (load_file(folder / "model.safetensors") for folder in files)
        assert all(torch.equal(got[key], weight) for key, weight in want.items())
    for refused in again["of one"]:
        assert refused["kind"] == "OptionError"
        assert "belongs to a run of 1 processes, this one has 2" in refused["error"]


def test_ctrl_c_stops_every_rank_at_the_same_step(tmp_path):
    """Torchrun hands the signal on. The one checkpoint is the one that the stop writes."""
    plan = {"run": {**COMMON, "epochs": 100_000, "checkpoint_every": 1_000_000, "marked": True}}
    running = start(tmp_path, plan, 2)
    try:
        while running.poll() is None and len(list((tmp_path / "run").glob("marked_*"))) < 2:
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=120)
    finally:
        running.kill()
    stopped = outcomes(tmp_path / "run", 2)
    assert [one["kind"] for one in stopped] == ["InterruptedRunError"] * 2, said
    assert stopped[0] == stopped[1]
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("checkpoint_"))
    assert stopped[0]["error"] == f"stopped after step {step} of 200000"
    assert len(read_json(checkpoint / "run.json")["progress"]["losses"]) == step


def test_what_goes_wrong_ends_every_rank(runs):
    folder, done = runs[2]
    for uneven in done["uneven"]:
        assert uneven["error"].startswith("--batch_size must be a multiple of the 2 processes")
    for broken in done["broken"]:
        assert broken["kind"] == "CheckpointError"
        assert "No space left on device" in broken["error"]
    assert not list((folder / "broken" / "checkpoints").iterdir())
