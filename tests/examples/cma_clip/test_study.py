import copy
import json
import time

import open_clip
import pytest

from examples.cma_clip import prepare
from examples.cma_clip import study as study_module
from examples.cma_clip.__main__ import main as classify
from examples.cma_clip.config import Config, StudyConfig
from examples.cma_clip.differences import encoder_text
from examples.cma_clip.experiment import Experiment
from examples.cma_clip.relevance import is_word, token_names
from examples.cma_clip.report import markdown
from examples.cma_clip.stages import StageResult, epoch_line
from examples.cma_clip.study import FULL, NO_MA, RESULTS, main, processes
from examples.cma_clip.summary import PM, Mean, Runs
from examples.finetune.checkpoint import CheckpointError
from examples.finetune.config import OptionError
from examples.finetune.interrupt import InterruptedRunError

from .tiny import TEXT, VISION

TINY = {
    "limit": 100,
    "min_instances": 3,
    "image_size": 32,
    "embed_dim": 16,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "batch_size": 16,
    "alignment_epochs": 1,
    "cpu": True,
}


def command(options, *more):
    return [part for k, v in options.items() for part in (f"--{k}", str(v))] + list(more)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    options = {
        **TINY,
        "output_dir": folder / "run",
        "results_dir": folder / "results",
        "workers": 1,
    }
    arguments = command(options, "--seeds", "1", "2", "--stage_epochs", "1", "1", "1")
    assert main(arguments) == 0
    return folder, arguments


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


def test_the_report_says_what_is_in_the_json(study):
    folder, _ = study
    report = json.loads((folder / "results" / "study.json").read_text())
    text = (folder / "results" / "study.md").read_text()
    assert text == markdown(report)
    assert "Size: 1 layers, 16 wide, 2 heads" in text
    mean = Mean.of(Runs(report).values("noisy", NO_MA, "recall", "average"))
    assert mean.plain() in text


def test_the_committed_report_says_what_is_in_its_json():
    report = json.loads((RESULTS / "study.json").read_text())
    assert (RESULTS / "study.md").read_text(encoding="utf-8") == markdown(report)


def test_the_report_of_one_seed_has_no_errors(study):
    folder, _ = study
    report = json.loads((folder / "results" / "study.json").read_text())
    report["seeds"] = [1]
    text = markdown(report)
    assert "One seed, in percent" in text
    assert PM not in text and "*" not in text.split("## Without noise")[1].split("## What dif")[0]


def test_the_report_tells_the_best_epochs_and_counts_its_comparisons(study):
    folder, _ = study
    report = json.loads((folder / "results" / "study.json").read_text())
    for run in report["runs"]:
        for variant in run["variants"].values():
            for stage in variant["stages"]:
                stage["validation"] = [0.0] * 8
                stage["best_epoch"] = 3
    full = {r["seed"]: r["variants"][FULL]["stages"] for r in report["runs"][::2]}
    full[1][0]["best_epoch"], full[2][0]["best_epoch"], full[2][2]["best_epoch"] = 2, 7, 7
    text = markdown(report)
    assert "| model | warm-up of 7, clean | warm-up of 7, noisy | end-to-end of 7, clean" in text
    assert f"| {FULL} | 4.5 (2 to 7) | 3 (3 to 3) | 3 (3 to 3) | 3 (3 to 3) | 5 (3 to 7) |" in text
    assert "Of 20 runs" in text
    assert "warm-up stage in 1, of the end-to-end stage in 0, of the tuning stage in 1;" in text
    tables = [line for line in text.splitlines() if line.startswith(f"| {FULL} minus")]
    cells = sum(line.count(PM) for line in tables)
    # Of the weights' table: two models, two tasks, two differences.
    assert f"The tables hold {cells + 8} comparisons, of which these 4 lines tell 16." in text


def test_the_report_describes_other_encoders(study):
    folder, _ = study
    options = json.loads((folder / "results" / "study.json").read_text())["options"]
    assert "releases the last block of each, and the projections" in encoder_text(options)
    assert "releases all of both" in encoder_text({**options, "unfreeze": "all"})
    clip = encoder_text({**options, "model": "ViT-B-32", "alignment_epochs": 0})
    assert clip.startswith("open_clip's ViT-B-32 (random weights), not aligned. ")
    assert "releases the last block and the projection of each tower" in clip
    assert "starts at examples.finetune's 0.03" in clip


def test_only_large_differences_are_findings(study):
    folder, _ = study
    report = json.loads((folder / "results" / "study.json").read_text())
    report["seeds"] = [1, 2, 3]
    report["runs"] += [{**copy.deepcopy(run), "seed": 3} for run in report["runs"][:2]]
    for run in report["runs"]:
        for name, variant in run["variants"].items():
            test = variant["test"][run["condition"]]
            value = 50.0 + run["seed"] + (20 if name == FULL else 0)
            jitter = 0.1 * run["seed"] * (name == NO_MA)
            test["recall"] = dict.fromkeys(report["classes"], value + jitter)
            test["accuracy"] = dict.fromkeys(report["classes"], float(7 * run["seed"] % 5))
    text = markdown(report)
    assert "Average R@90, with noise: CMA-CLIP has 20.0 points more than without contr" in text
    assert "; 19.8 points more than w/o MA;" in text
    line = next(x for x in text.splitlines() if x.startswith("- Average accuracy, with noise"))
    assert "CMA-CLIP has a difference within chance from without contrastive loss (+0.0" in line
    assert "more" not in line


def test_means_and_intervals():
    mean = Mean.of([1.0, 2.0, 3.0])
    assert (mean.value, mean.error) == (2.0, pytest.approx(1 / 3**0.5))
    assert not mean.outside_noise  # 2 against 4.30 standard errors of 0.58
    assert Mean.of([2.0, 2.1, 1.9]).outside_noise
    assert not Mean.of([5.0]).outside_noise
    assert Mean.of([2.0, 2.1, 1.9]).signed() == "+2.0 ± 0.1*"


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


def test_words_of_both_tokenizers():
    packaged = token_names(Config(), "red apple")
    assert packaged == ["[CLS]", "red", "apple", "[SEP]"]
    clip = token_names(Config(model="ViT-B-32"), "red apple")
    assert clip[:4] == ["<start_of_text>", "red", "apple", "<end_of_text>"]
    assert [name for name in (*packaged, *clip[:4]) if is_word(name)] == ["red", "apple"] * 2
    assert not is_word(",")


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
