import json
import time

import open_clip
import pytest

from examples.errors import CheckpointError, InterruptedRunError
from examples.options import OptionError
from examples.studies.cma_clip import prepare
from examples.studies.cma_clip import study as study_module
from examples.studies.cma_clip.__main__ import main as classify
from examples.studies.cma_clip.config import Config, StudyConfig
from examples.studies.cma_clip.experiment import Experiment
from examples.studies.cma_clip.stages import StageResult, epoch_line
from examples.studies.cma_clip.study import FULL, main, processes

from .tiny import TEXT, TINY, VISION, command


def test_a_tiny_study_writes_everything_and_goes_on(study, capsys):
    folder, arguments = study
    names = {path.name for path in (folder / "results").iterdir()}
    assert names == {"study.json", "study.md", "ablation.svg", "text_weight.svg"}
    assert (folder / "run" / "relevance.png").stat().st_size > 1000
    report = json.loads((folder / "results" / "study.json").read_text())
    assert [(r["seed"], r["condition"]) for r in report["runs"]] == [
        (s, c) for s in (1, 2) for c in ("clean", "noisy")
    ]
    noisy = report["runs"][1]["variants"][FULL]
    assert 0 < noisy["test"]["noisy"]["noisy_pairs"] < noisy["test"]["noisy"]["pairs"]
    assert [stage["name"] for stage in noisy["stages"]] == ["warm_up", "end_to_end", "tuning"]
    # The models of a seed share the warm-up where it is the same.
    other = report["runs"][1]["variants"]["without contrastive loss"]
    assert other["stages"][0] == noisy["stages"][0]
    assert other["stages"][1]["losses"] != noisy["stages"][1]["losses"]
    files = {p: p.read_bytes() for p in (folder / "results").iterdir()}
    assert main(arguments) == 0  # everything is there already
    assert {p: p.read_bytes() for p in files} == files
    assert main([*arguments, "--width", "8"]) == 2
    assert "has parts of a study with another width" in capsys.readouterr().err


def test_one_run_from_the_command_line(tmp_path, capsys):
    options = {**TINY, "output_dir": tmp_path, "noise": "image", "alignment_epochs": 0}
    assert classify(command(options, "--stage_epochs", "1", "0", "1")) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [stage["name"] for stage in results["stages"]] == ["warm_up", "tuning"]
    assert set(results["test"]) == {"clean", "noisy"}
    assert (tmp_path / "model.safetensors").is_file()
    out = capsys.readouterr().out
    assert "recall at 90 % precision" in out
    lines = [line for line in out.splitlines() if ", epoch " in line]
    assert [line.split(": mean loss")[0] for line in lines] == [
        "warm_up, epoch 1 of 1",
        "tuning, epoch 1 of 1",
    ]
    accuracy = results["stages"][0]["validation"][1]
    loss = sum(results["stages"][0]["losses"]) / len(results["stages"][0]["losses"])
    assert lines[0].endswith(f": mean loss {loss:.3f}, validation accuracy {accuracy:.1f}")


def test_an_epochs_line_is_of_that_epoch():
    line = epoch_line(StageResult("tuning", [0.0, 50.0, 62.5], [4.0, 4.0, 1.0, 2.0]), 9)
    assert line == "tuning, epoch 2 of 9: mean loss 1.500, validation accuracy 62.5"


def test_the_help_names_the_studys_options(capsys):
    paper, small = Config(), StudyConfig()
    with pytest.raises(SystemExit):
        classify(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    named = text.split("learn it in minutes: ")[1].split(" options: ")[0] + " "
    for name in ("width", "heads", "lr", "encoder_lr", "batch_size", "embed_dim", "dropout"):
        value = named.split(f"--{name} ")[1].split()[0]
        assert float(value) == getattr(small, name) != getattr(paper, name)
    assert f"--layers {small.layers} " in named
    assert f"--stage_epochs {' '.join(map(str, small.stage_epochs))} " in named


def test_encoders_aligned_on_another_split_are_not_taken(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "run", lambda *_, **__: None)
    monkeypatch.setattr(prepare, "load_encoders", prepare.fresh_encoders)
    monkeypatch.setattr(Experiment, "train", lambda *_, **__: None)
    options = {**TINY, "output_dir": tmp_path}
    assert classify(command(options)) == 0
    assert classify(command({**options, "limit": 140, "embed_dim": 8})) == 2
    message = f"{tmp_path} has parts of a run with another limit, embed_dim; name another"
    assert message in capsys.readouterr().err
    assert classify(command({**options, "seed": 1})) == 2
    assert "with another seed" in capsys.readouterr().err
    assert classify(command({**options, "lr": 0.1, "noise": "text"})) == 0  # of the stages only


def test_one_run_of_an_open_clip_model(tmp_path):
    config = {
        "embed_dim": 16,
        "vision_cfg": VISION,
        "text_cfg": {**TEXT, "vocab_size": 49408},
    }
    (tmp_path / "tiny-for-the-command.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    options = {
        **TINY,
        "model": "tiny-for-the-command",
        "unfreeze": "all",
        "output_dir": tmp_path,
        "batch_size": 64,
        "alignment_epochs": 0,
    }
    assert classify(command(options, "--stage_epochs", "1", "1", "1")) == 0
    stages = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert [len(stage["validation"]) for stage in stages] == [2, 2, 2]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("heads", 3, "--heads must divide --width 512, not 3"),
        ("layers", 0, "--layers must be at least 1, not 0"),
        ("lr", 0.0, "--lr must be positive"),
        ("contrastive_weight", -1.0, "--contrastive_weight must not be negative"),
        ("stage_epochs", [1, 2], "--stage_epochs takes three numbers"),
        ("stage_epochs", [0, 0, 0], "not all 0"),
        ("noise_rate", 2.0, r"--noise_rate must lie in \[0, 1\], not 2.0"),
        ("precision", 0.0, r"--precision must lie in \(0, 1\]"),
        ("dropout", 1.0, r"--dropout must lie in \[0, 1\)"),
    ],
)
def test_wrong_options_are_named(option, value, message):
    with pytest.raises(OptionError, match=message):
        Config(**{option: value})


def test_wrong_command_lines_end_with_a_message(capsys, tmp_path):
    assert classify(["--heads", "3"]) == 2
    assert "error: --heads must divide" in capsys.readouterr().err
    assert main(["--noise", "none", "--output_dir", str(tmp_path)]) == 2
    assert "--noise must be image or text" in capsys.readouterr().err
    assert main(["--workers", "0", "--output_dir", str(tmp_path)]) == 2
    assert "--workers must be at least 1" in capsys.readouterr().err


def test_the_studys_options_differ_in_size_only():
    paper, small = Config(), StudyConfig()
    assert (paper.layers, paper.width, paper.heads) == (12, 512, 8)
    assert paper.batch_size * paper.pairs_per_instance == 1024
    assert (paper.lr, paper.weight_decay, paper.stage_epochs) == (1e-5, 1e-4, [20, 20, 20])
    assert paper.precision == small.precision == 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_attention": "false"}, "--sequence_attention must not be false: the study"),
        ({"modality_attention": "false"}, "--modality_attention must not be false: the study"),
        ({"contrastive_weight": 0}, "--contrastive_weight must not be 0.0: the study"),
        ({"noise_rate": 0}, "--noise_rate must lie strictly between 0 and 1, not 0.0"),
        ({"noise_rate": 1}, "--noise_rate must lie strictly between 0 and 1, not 1.0"),
    ],
)
def test_the_study_refuses_what_its_variants_or_report_cannot_have(
    options, message, capsys, monkeypatch
):
    monkeypatch.setattr(study_module, "run_study", None)
    assert main(command(options)) == 2
    assert message in capsys.readouterr().err


def test_a_study_of_encoders_that_are_not_aligned(tmp_path):
    options = {**TINY, "alignment_epochs": 0, "output_dir": tmp_path, "results_dir": tmp_path}
    more = ("--workers", "1", "--seeds", "1", "--stage_epochs", "1", "0", "0")
    assert main(command(options, *more)) == 0
    assert (tmp_path / "study.md").is_file()


STOPS = [
    (KeyboardInterrupt(), 130, "\nInterrupted. "),
    (InterruptedRunError("stopped after step 3 of 9"), 130, "\nstopped after step 3 of 9. "),
    (CheckpointError("cannot write checkpoint x"), 1, "error: cannot write checkpoint x"),
]


@pytest.mark.parametrize(("stop", "code", "message"), STOPS)
def test_a_study_that_stops_says_so_in_a_line(stop, code, message, monkeypatch, capsys):
    def run_study(*_):
        raise stop

    monkeypatch.setattr(study_module, "run_study", run_study)
    assert main([]) == code
    text = capsys.readouterr().err
    assert text.startswith(message)
    if code == 130:
        assert "Finished parts are kept; run the same command again to go on from them." in text


@pytest.mark.parametrize(("stop", "code", "message"), STOPS)
def test_a_run_that_stops_says_so_in_a_line(stop, code, message, monkeypatch, capsys, tmp_path):
    def run(*_, **__):
        raise stop

    monkeypatch.setattr(prepare, "load_data", lambda config: None)
    monkeypatch.setattr(prepare, "aligned_encoders", run)
    assert classify(["--output_dir", str(tmp_path)]) == code
    text = capsys.readouterr().err
    assert text.startswith(message)
    if isinstance(stop, KeyboardInterrupt):
        assert "Aligned encoders that are finished stay in --output_dir" in text


def test_an_exception_ends_the_workers_and_what_they_have_begun():
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), processes(2) as run_all:  # noqa: PT012
        run_all(time.sleep, [300] * 5)
        raise KeyboardInterrupt
    assert time.monotonic() - start < 60
