"""The trainer is killed, runs out of disk, and is given files that are not its own."""

import itertools
import pickle
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from examples.files import digest_of, read_json, write_json
from tests.support.tiny_run import server

KILLS = 20


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    with server(tmp_path_factory.mktemp("log") / "log") as running:
        yield running


@pytest.fixture
def options(tmp_path):
    return {
        "output_dir": str(tmp_path / "run"),
        "batch_size": 4,
        "max_steps": 6,
        "epochs": 10,
        "checkpoint_every": 1,
        "micro_batch": 4,
        "cpu": True,
    }


def weights(options):
    return (Path(options["output_dir"]) / "model.safetensors").read_bytes()


def checkpoints(options):
    """Names of the checkpoints, finished or not."""
    return sorted(p.name for p in (Path(options["output_dir"]) / "checkpoints").iterdir())


def complete(options):
    """Names of the checkpoints that a run goes on from."""
    files = (Path(options["output_dir"]) / "checkpoints").glob("*/run.json")
    return sorted(p.parent.name for p in files)


def whole_run(trainer, options):
    whole = {**options, "output_dir": options["output_dir"] + "-whole"}
    start = time.monotonic()
    assert trainer.run(whole) == 0, trainer.log()
    return weights(whole), time.monotonic() - start


def test_killed_at_twenty_random_points(trainer, options):
    """Whatever the kill interrupts: a step, a save, its renaming, the removal of an old one."""
    expected, seconds = whole_run(trainer, options)
    draw = random.Random(0)
    kills, left_behind = 0, set()
    while kills < KILLS:
        code = trainer.run(options, kill=draw.uniform(0, seconds))
        if code == -signal.SIGKILL:
            kills += 1
            left_behind.update(complete(options))
            continue
        # It was done before the kill came: it must be right, and the next one starts over.
        assert code == 0, trainer.log()
        assert weights(options) == expected
        shutil.rmtree(options["output_dir"])
    assert trainer.run(options) == 0, trainer.log()
    assert weights(options) == expected
    assert left_behind  # the kills did not all come before the first checkpoint


def test_a_full_disk_leaves_the_last_good_checkpoint(trainer, options):
    """No file may grow over a few hundred bytes, so that every write of a tensor fails."""
    expected, _ = whole_run(trainer, options)
    half = {**options, "checkpoint_every": 5}
    fifth = Path(options["output_dir"]) / "checkpoints" / "checkpoint_5" / "run.json"
    assert trainer.run(half, kill=fifth) == -signal.SIGKILL
    before = complete(options)
    assert before == ["checkpoint_5"]
    assert trainer.run(options, file_size_limit=900) == 1
    assert "error: cannot write checkpoint" in trainer.log()
    assert f"the last complete checkpoint is {options['output_dir']}" in trainer.log()
    assert checkpoints(options) == before
    assert trainer.run(options) == 0, trainer.log()
    assert weights(options) == expected


def test_a_really_full_disk(trainer, options, tmp_path):
    expected, _ = whole_run(trainer, options)
    disk = tmp_path / "disk"
    disk.mkdir()
    # Room for one checkpoint and a part of the second.
    mount = ["mount", "-t", "tmpfs", "-o", "size=72k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        full = {**options, "output_dir": str(disk / "run")}
        assert trainer.run(full) == 1, trainer.log()
        free = re.search(r"cannot write checkpoint .* \(([\d,]+) bytes were free", trainer.log())
        assert free is not None, trainer.log()
        assert int(free[1].replace(",", "")) < 20_000
        assert checkpoints(full) == complete(full)
        assert complete(full)
        shutil.copytree(disk / "run", options["output_dir"])
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert trainer.run(options) == 0, trainer.log()
    assert weights(options) == expected


class Payload:
    """What unpickling it would do."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_no_file_of_a_checkpoint_runs_code(trainer, options, tmp_path):
    options["max_steps"] = 2
    assert trainer.run(options) == 0
    newest = Path(options["output_dir"]) / "checkpoints" / "checkpoint_2"
    mark = tmp_path / "code was run"
    names = sorted(p.name for p in newest.iterdir())
    assert {"model.safetensors", "model_1.safetensors", "optimizer.bin", "run.json"} <= set(names)
    for name, write in itertools.product(names, (pickled, saved)):
        good, record = (newest / name).read_bytes(), (newest / "run.json").read_bytes()
        write(newest / name, Payload(mark))
        trainer.run(options)
        assert not mark.exists(), name
        assert "cannot read checkpoint" in trainer.log(), name
        if name != "run.json":  # who can write the file can write its digest
            seal_again(newest, name)
            trainer.run(options)
            assert not mark.exists(), name
            if not name.startswith("random_states"):  # every step is seeded anew: not used
                assert "cannot read checkpoint" in trainer.log(), name
                assert "SHA-256" not in trainer.log(), name
        (newest / name).write_bytes(good)
        (newest / "run.json").write_bytes(record)


def seal_again(checkpoint, name):
    """Put the digest of a file as it is into the checkpoint's record."""
    run = read_json(checkpoint / "run.json")
    run["files"][name] = digest_of(checkpoint / name)
    write_json(checkpoint / "run.json", run)


def pickled(path, payload):
    path.write_bytes(pickle.dumps(payload))


def saved(path, payload):
    torch.save(payload, path)


def test_pretrained_weights_run_no_code(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    from examples.encoders.open_clip import load_open_clip

    mark, path = tmp_path / "code was run", tmp_path / "weights.pt"
    torch.save(Payload(mark), path)
    name = min(open_clip.list_models(), key=lambda n: width(open_clip, n))
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_open_clip(name, str(path))
    assert not mark.exists()


def width(open_clip, name):
    return open_clip.get_model_config(name)["embed_dim"]
