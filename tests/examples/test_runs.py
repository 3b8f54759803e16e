import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from examples.errors import CheckpointError, InterruptedRunError
from examples.finetune.__main__ import main
from examples.finetune.config import Config
from examples.finetune.inputs import build_encoders
from examples.finetune.retrieval import evaluate
from examples.finetune.train import Trainer, make_accelerator, make_material, run
from examples.options import OptionError

ROOT = Path(__file__).parents[2]

CRASH_AT_STEP = """
import os, signal, sys, torch
from examples.finetune import train
from examples.finetune.__main__ import main
torch.set_num_threads(1)
step = train.Trainer.train_step
def crash(self, batch):
    if self.progress.step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)
train.Trainer.train_step = crash
main(sys.argv[1:])
"""

CRASH_IN_SAVE = """
import os, signal, sys, torch
from examples.finetune import checkpoint
from examples.finetune.__main__ import main
torch.set_num_threads(1)
flush = checkpoint.flush
def crash(path):
    if "checkpoint_4" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
    flush(path)
checkpoint.flush = crash
main(sys.argv[1:])
"""


def arguments(options):
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def weights(options):
    return load_file(Path(options["output_dir"]) / "model.safetensors")


def folders(options):
    """Names of the checkpoints, finished or not."""
    return sorted(p.name for p in (Path(options["output_dir"]) / "checkpoints").iterdir())


def complete(options):
    """Names of the checkpoints that a run goes on from."""
    files = (Path(options["output_dir"]) / "checkpoints").glob("*/run.json")
    return sorted(p.parent.name for p in files)


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    config = Config(limit=9, image_size=32, cpu=True)
    return make_material(config, build_encoders(config), make_accelerator(config))


@pytest.mark.parametrize("loss", ["mfh", "clip"])
def test_a_crash_at_any_step_changes_no_number(loss, tiny, tmp_path, material):
    whole = {**tiny, "loss": loss, "output_dir": str(tmp_path / "whole")}
    want = run(Config(**whole), material)
    crashed = {**tiny, "loss": loss}
    script = CRASH_AT_STEP.format(step=3) if loss == "mfh" else CRASH_IN_SAVE
    command = [sys.executable, "-c", script, *arguments(crashed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    # Step 2 and, where the crash was in writing step 4, a part of that one.
    assert complete(crashed) == ["checkpoint_2"]
    assert folders(crashed) == ["checkpoint_2", *["checkpoint_4"] * (loss == "clip")]
    got = run(Config(**crashed), material)
    assert folders(crashed) == complete(crashed) == ["checkpoint_4", "checkpoint_5"]
    assert got.losses == want.losses
    assert got.before == want.before
    assert got.after == want.after
    assert_same(weights(crashed), weights(whole))


def test_a_failed_save_leaves_the_last_good_checkpoint(tiny, material, monkeypatch):
    config = Config(**tiny)

    def full(path):
        raise OSError("No space left on device")

    publish = "examples.finetune.checkpoint.flush"
    run(Config(**{**tiny, "checkpoint_every": 5}), material)
    accelerator = make_accelerator(config)
    trainer = Trainer(config, accelerator, build_encoders(config).model, material)
    trainer.checkpoints.restore()
    assert trainer.progress.step == 5
    trainer.progress.step = 6
    with monkeypatch.context() as patch:
        patch.setattr(publish, full)
        with pytest.raises(CheckpointError, match=r"_6: No space.*complete.*checkpoint_5\)"):
            trainer.checkpoints.save()
    assert folders(tiny) == complete(tiny) == ["checkpoint_5"]
    trainer.checkpoints.restore()
    assert trainer.progress.step == 5


def test_sigint_finishes_the_step_and_says_how_to_resume(tiny, material, monkeypatch, capsys):
    step = Trainer.train_step

    def interrupt(self, batch):
        if self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupt)
        with pytest.raises(InterruptedRunError, match="after step 3 of 5"):
            run(Config(**tiny), material)
        assert complete(tiny)[-1] == "checkpoint_3"
        # A second run of the same command, interrupted again at once, through the command line.
        patch.setattr("examples.finetune.train.run", raise_interrupted)
        assert main(arguments(tiny)) == 130
    assert "Run the same command again" in capsys.readouterr().err
    assert len(run(Config(**tiny), material).losses) == 5


def raise_interrupted(config):
    raise InterruptedRunError("stopped after step 3 of 5")


def test_other_options_are_refused_unless_told_to_start_over(tiny, material):
    run(Config(**tiny), material)
    other = {**tiny, "lr": 1e-3}
    with pytest.raises(OptionError, match=r"--lr 0.* there, 0.001 now.*--resume false"):
        run(Config(**other), material)
    assert len(run(Config(**other, resume=False), material).losses) == 5
    checkpoint = Path(other["output_dir"]) / "checkpoints" / "checkpoint_5"
    assert json.loads((checkpoint / "run.json").read_text())["options"]["lr"] == 1e-3


def test_command_line_writes_figure_table_and_metrics(tiny, capsys):
    assert main(arguments({**tiny, "aggregate": "images"})) == 0
    folder = Path(tiny["output_dir"])
    assert "| text to mean image | after |" in capsys.readouterr().out
    with Image.open(folder / "finetune.png") as figure:
        assert min(figure.size) > 1000
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(metrics["losses"]) == 5
    assert set(metrics["after"]) == {"text_to_image", "image_to_text"}


@pytest.mark.parametrize("options", [{}, {"loss": "clip"}, {"micro_batch": 4}])
def test_a_temperature_that_is_not_learned_stays(options, tiny, tmp_path, material):
    fixed = {**tiny, **options, "temperature": 0.07, "learn_temperature": False}
    start = math.log(1 / 0.07)
    assert len(run(Config(**fixed), material).losses) == 5
    assert weights(fixed)["log_scale"].item() == pytest.approx(start, abs=1e-6)
    learned = {**fixed, "learn_temperature": True}
    with pytest.raises(OptionError, match=r"--learn_temperature False there, True now"):
        run(Config(**learned), material)
    learned["output_dir"] = str(tmp_path / "learned")
    run(Config(**learned), material)
    assert abs(weights(learned)["log_scale"].item() - start) > 1e-4


def test_aggregated_retrieval_changes_the_metrics_alone(tiny, tmp_path, material):
    options = {**tiny, "max_steps": 2}
    plain = run(Config(**options), material)
    options = {**options, "output_dir": str(tmp_path / "aggregated"), "aggregate": "images"}
    result = run(Config(**options), material)
    assert result.losses == plain.losses
    assert torch.equal(result.images, plain.images)  # of each image: the figure shows these
    assert result.after["text_to_image"] != plain.after["text_to_image"]
    metrics = json.loads((tmp_path / "aggregated" / "metrics.json").read_text())
    assert metrics["aggregate"] == "images"
    assert metrics["after"] == evaluate(result.images, result.texts, material.evaluation, "images")
    with pytest.raises(OptionError, match=r"--aggregate 'images' there, 'both' now"):
        run(Config(**{**options, "aggregate": "both"}), material)


def test_augmented_images_are_trained_on_and_not_evaluated_on(tiny, tmp_path):
    options = {**tiny, "unfreeze": "all", "max_steps": 2, "limit": 4, "batch_size": 2}
    plain = run(Config(**options))
    other = {**options, "augment": "paper", "output_dir": str(tmp_path / "augmented")}
    result = run(Config(**other), plain.material)
    assert result.before == plain.before
    assert result.losses[0] != plain.losses[0]
    again = {**other, "num_workers": 1, "output_dir": str(tmp_path / "again")}
    assert run(Config(**again), plain.material).losses == result.losses
    with pytest.raises(OptionError, match=r"--augment 'paper' there, 'none' now"):
        run(Config(**{**other, "augment": "none"}), plain.material)


@pytest.mark.parametrize("unfreeze", ["all", "heads"])
def test_other_parts_can_be_trained(unfreeze, tiny):
    config = Config(**{**tiny, "unfreeze": unfreeze, "max_steps": 2, "limit": 4, "batch_size": 2})
    result = run(config)
    assert len(result.losses) == 2
    names = set(weights(tiny))
    assert any("embeddings" in name for name in names) == (unfreeze == "all")
    assert len(names) == 3 or unfreeze == "all"


def test_learning_reduces_the_loss(tiny, material):
    options = {**tiny, "max_steps": 0, "epochs": 12, "batch_size": 9, "checkpoint_every": 100}
    losses = run(Config(**options), material).losses
    assert losses[-1] < 0.8 * losses[0]


WITHOUT_DROPOUT = """
import sys, torch
from examples.encoders.dual import DualEncoder
from examples.finetune.__main__ import main
torch.set_num_threads(1)
DualEncoder.train = lambda self, mode=True: torch.nn.Module.train(self, False)
sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_share_the_batches(tiny, tmp_path):
    """And have the losses of one, which test_processes.py has for every option."""
    script, losses = tmp_path / "without_dropout.py", {}
    script.write_text(WITHOUT_DROPOUT)
    for processes in (1, 2):
        options = {**tiny, "limit": 8, "batch_size": 4, "output_dir": tmp_path / str(processes)}
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *launch, str(script), *arguments(options)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("| text to image | after |") == 1
        metrics = json.loads((options["output_dir"] / "metrics.json").read_text())
        assert metrics["processes"] == processes
        losses[processes] = metrics["losses"]
        assert len(losses[processes]) == 5
        assert folders(options) == complete(options) == ["checkpoint_4", "checkpoint_5"]
    torch.testing.assert_close(losses[2], losses[1], rtol=1e-4, atol=1e-5)


def test_help_lists_the_options():
    command = [sys.executable, "-m", "examples.finetune", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("--loss {mfh,clip}", "--model", "--pretrained", "--teacher_decay"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "coco", "data_root": "nowhere"}, "--data_root: nowhere"),
        ({"model": "no-such-model"}, "--model: open_clip has no 'no-such-model'"),
        ({"model": "RN50", "pretrained": "no-such-tag"}, "--pretrained: 'no-such-tag'"),
        ({"temperature": 0}, "--temperature"),
        ({"batch_size": 0}, "--batch_size"),
        ({"pretrained": "openai"}, "--pretrained goes with"),
    ],
)
def test_user_errors_name_the_argument(options, message, tmp_path, capsys):
    options = {"output_dir": tmp_path / "run", **options}
    assert main(arguments(options)) == 2
    assert message in capsys.readouterr().err


def test_micro_batches_give_the_same_run(tiny, material, tmp_path, monkeypatch):
    """Gradient caching, with dropout off: cut or whole, a row's dropout draws differently."""
    eval_mode = lambda self, mode=True: torch.nn.Module.train(self, False)  # noqa: E731
    monkeypatch.setattr("examples.encoders.dual.DualEncoder.train", eval_mode)
    whole = {**tiny, "output_dir": str(tmp_path / "whole")}
    want = run(Config(**whole), material)
    got = run(Config(**tiny, micro_batch=4), material)
    torch.testing.assert_close(got.losses, want.losses, rtol=1e-5, atol=1e-6)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(tiny)[name], weight, rtol=1e-4, atol=1e-5)
