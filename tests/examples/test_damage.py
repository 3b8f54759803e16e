"""A checkpoint that is not what was written is refused by the name of its file."""

import json
import shutil
from pathlib import Path

import pytest

from examples.files import digest_of, sealed
from tests.support.damage import flip, restored
from tests.support.tiny_run import server

STATE = {"model.safetensors", "model_1.safetensors", "optimizer.bin", "scheduler.bin"}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    with server(tmp_path_factory.mktemp("log") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def finished(trainer, tmp_path_factory):
    """Options of a run that was finished, with checkpoints of its steps 2 and 4."""
    options = {
        "output_dir": str(tmp_path_factory.mktemp("run")),
        "batch_size": 4,
        "max_steps": 4,
        "epochs": 10,
        "checkpoint_every": 2,
        "cpu": True,
    }
    assert trainer.run(options) == 0, trainer.log()
    return options


@pytest.fixture
def options(finished, tmp_path):
    """The same run, to be damaged."""
    shutil.copytree(finished["output_dir"], tmp_path / "run")
    return {**finished, "output_dir": str(tmp_path / "run")}


def newest(options):
    return Path(options["output_dir"]) / "checkpoints" / "checkpoint_4"


def refused(trainer, options, message):
    """The run ends with a line that says what to do, and leaves everything as it is."""
    metrics = Path(options["output_dir"]) / "metrics.json"
    metrics.unlink(missing_ok=True)
    before = {p: digest_of(p) for p in newest(options).parent.rglob("*") if p.is_file()}
    assert trainer.run(options) == 1, trainer.log()
    assert f"error: cannot read checkpoint {newest(options)}: {message}" in trainer.log()
    assert "Remove it to go on from the one before, or start over" in trainer.log()
    assert "Traceback" not in trainer.log()
    assert not metrics.exists()
    assert {p: digest_of(p) for p in newest(options).parent.rglob("*") if p.is_file()} == before


def test_an_untouched_checkpoint_is_read(trainer, options, finished):
    assert trainer.run(options) == 0, trainer.log()
    ours, theirs = (Path(o["output_dir"]) / "metrics.json" for o in (options, finished))
    assert json.loads(ours.read_text()) == json.loads(theirs.read_text())


def test_flipped_bytes_of_every_file(trainer, options):
    files = sorted(newest(options).iterdir())
    assert {path.name for path in files} > {*STATE, "run.json"}
    for path in files:
        for place in (0.3, 0.99):
            with restored(path):
                flip(path, place)
                refused(trainer, options, f"{path.name} is not what was written, by its SHA-256")
    assert trainer.run(options) == 0, trainer.log()


def test_truncated_and_missing_files(trainer, options):
    for path in sorted(newest(options).iterdir()):
        with restored(path):
            path.write_bytes(path.read_bytes()[:-40])
            refused(trainer, options, f"{path.name} ")
        if path.name != "run.json":
            with restored(path):
                path.unlink()
                refused(trainer, options, f"{path.name} is missing")
    with restored(newest(options) / "run.json"):
        (newest(options) / "run.json").write_bytes(b"")
        refused(trainer, options, "run.json has no SHA-256")


def test_the_one_before_is_taken_where_the_last_was_not_finished(trainer, options, finished):
    """Without `run.json`, which is written last, a checkpoint does not count."""
    (newest(options) / "run.json").unlink()
    assert trainer.run(options) == 0, trainer.log()
    ours, theirs = (Path(o["output_dir"]) / "model.safetensors" for o in (options, finished))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("step", [-1, 0, 2, 5, 10**9, 10**30, None, "4", 4.0, [4]])
@pytest.mark.parametrize("resealed", [False, True])
def test_edited_steps(trainer, options, step, resealed):
    path = newest(options) / "run.json"
    run = json.loads(path.read_text())
    digest = run.pop("sha256")
    run["progress"]["step"] = step
    path.write_text(sealed(run) if resealed else json.dumps({**run, "sha256": digest}))
    refused(trainer, options, "" if resealed else "run.json is not what was written, by its SHA")


@pytest.mark.parametrize("name", ["losses", "before", "seconds"])
def test_edited_progress(trainer, options, name):
    path = newest(options) / "run.json"
    run = json.loads(path.read_text())
    run["progress"][name] = None
    path.write_text(json.dumps(run))
    refused(trainer, options, "run.json is not what was written, by its SHA-256")


def test_an_older_checkpoint_has_no_checksums(trainer, options):
    path = newest(options) / "run.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps({"options": run["options"], "progress": run["progress"]}))
    refused(trainer, options, "run.json has no SHA-256 of what was written: it is damaged, or of")
    options = {**options, "resume": False}
    assert trainer.run(options) == 0, trainer.log()


@pytest.mark.parametrize("name", ["checkpoint_5", "checkpoint_400", "checkpoint_04"])
def test_a_folder_of_another_step(trainer, options, name):
    newest(options).rename(newest(options).with_name(name))
    assert trainer.run(options) == 1
    assert f"{name}: {newest(options).with_name(name)}/run.json is that of step 4" in trainer.log()


def test_the_progress_of_another_run(trainer, options, tmp_path):
    """Its own files would be whole."""
    other = {**options, "output_dir": str(tmp_path / "other"), "seed": 1}
    assert trainer.run(other) == 0, trainer.log()
    with restored(newest(options) / "run.json"):
        shutil.copy(newest(other) / "run.json", newest(options))
        assert trainer.run(options) == 2
        assert "belongs to a run with other options (--seed 1 there, 2022 now)" in trainer.log()
        assert trainer.run({**options, "seed": 1}) == 1  # the progress, but not the weights
        assert " is not what was written, by its SHA-256" in trainer.log()
    assert trainer.run({**options, "max_steps": 5}) == 2
    assert "--max_steps 4 there, 5 now" in trainer.log()


def test_what_is_no_checkpoint_stays(trainer, options):
    """Notes, and a copy of one's own, in the folder of checkpoints."""
    folder = newest(options).parent
    (folder / "notes.txt").write_text("mine")
    shutil.copytree(newest(options), folder / "checkpoint_best")
    shutil.rmtree(newest(options))
    assert trainer.run(options) == 0, trainer.log()
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "checkpoint_best" / "run.json").is_file()
