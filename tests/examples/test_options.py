"""Every option of every command is checked before anything is loaded or made.

The options are those of the commands' dataclasses: a new one is tested by being there.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import pytest

from examples.errors import OptionError
from examples.finetune.__main__ import main as finetune
from examples.finetune.config import Config, Rounds
from examples.options import OptionGroup, Range, option, require_one_process, require_writable
from examples.studies.ablation import __main__ as ablation
from examples.studies.cma_clip import __main__ as cma_clip
from examples.studies.cma_clip import config as cma_config
from examples.studies.cma_clip import study
from examples.studies.cma_clip.rows import __main__ as rows_command
from examples.studies.cma_clip.rows import study as rows
from examples.studies.compare import __main__ as compare
from examples.studies.memory import study as memory
from examples.studies.stamps import __main__ as stamps
from mxm_kernels.checks import MOST_ROUNDS

COMMANDS = {
    "finetune": (finetune, [Config]),
    "compare": (compare.main, [Config, compare.Comparison]),
    "ablation": (ablation.main, [ablation.Options]),
    "memory": (memory.main, [memory.Options]),
    "cma_clip": (cma_clip.main, [cma_config.Config]),
    "cma_clip.study": (study.main, [cma_config.StudyConfig, study.Study]),
    "cma_clip.rows": (rows_command.main, [rows.RowsConfig, rows.Rows]),
    "stamps": (stamps.main, [stamps.Options]),
}


def options():
    """Command, name and type of every option; that of the elements of a list."""
    for command, (_, groups) in COMMANDS.items():
        for group in groups:
            for name, hint in get_type_hints(group, include_extras=True).items():
                yield command, name, get_args(hint)[0] if get_origin(hint) is list else hint


def kind(hint):
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def named(of):
    chosen = [o for o in options() if of(o[2])]
    return pytest.mark.parametrize(
        ("command", "name", "hint"), chosen, ids=[f"{c} {n}" for c, n, _ in chosen]
    )


WRONG = {
    int: ("-1", "nan", "inf", "1.5", "many", str(10**30), str(-(10**30))),
    float: ("-1", "-0.001", "nan", "inf", "-inf", "much", "1e300"),
}


def outcome(command, arguments, capsys):
    """Exit status and the last line of what a command says."""
    try:
        code = COMMANDS[command][0](arguments)
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err.strip().splitlines()[-1]


@named(lambda hint: kind(hint) in WRONG)
def test_a_number_out_of_its_range_is_named(command, name, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in WRONG[kind(hint)]:
        code, message = outcome(command, [f"--{name}={value}"], capsys)
        assert code == 2, value
        assert f"--{name} must " in message or f"argument --{name}" in message, value
        came = message.rpartition("not " if " must " in message else "value: ")[2].strip("'")
        assert came == value or float(came) == float(value) or str(float(value)) == came
    assert not list(tmp_path.iterdir())


@named(lambda hint: kind(hint) in WRONG)
def test_a_number_of_another_type_is_named(command, name, hint):
    (group,) = (g for g in COMMANDS[command][1] if name in get_type_hints(g))
    for value in ("1", None, True, 1.5 if kind(hint) is int else 1j):
        given = [value] if isinstance(getattr(group(), name), list) else value
        with pytest.raises(OptionError, match=rf"^--{name} must be an? (integer|number), not "):
            group(**{name: given})


@named(lambda hint: kind(hint) in WRONG)
def test_the_ends_of_a_range_are_in_it(command, name, hint):
    (allowed,) = hint.__metadata__
    for end in (allowed.least, allowed.most):
        assert not allowed.expected(end, kind(hint))
    assert allowed.expected(allowed.most * 2 + 1, kind(hint))
    assert allowed.expected(float("nan"), float)


@named(lambda hint: get_origin(hint) is Literal or hint is bool)
def test_a_word_that_is_no_choice_is_named(command, name, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, message = outcome(command, [f"--{name}=perhaps"], capsys)
    assert code == 2
    assert f"argument --{name}" in message
    assert not list(tmp_path.iterdir())


def test_every_group_of_options_is_a_commands():
    """So that the tests above have them all."""
    tested = {group for _, groups in COMMANDS.values() for group in groups}
    found = list(OptionGroup.__subclasses__())
    for group in found:
        found.extend(group.__subclasses__())
    assert {g for g in found if g.__module__.startswith("examples.")} == tested


def test_choices_are_checked_in_python_too():
    with pytest.raises(OptionError, match="--loss must be mfh or clip, not 'siglip'"):
        Config(loss="siglip")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hard_weight": 2.0}, "--hard_weight must lie in [0, 1], not 2.0"),
        ({"temperature": float("nan")}, "--temperature must lie in [0.01, 100], not nan"),
        ({"lr": float("inf")}, "--lr must lie in [0, 1], not inf"),
        ({"lr": -1.0}, "--lr must lie in [0, 1], not -1.0"),
        ({"rounds": MOST_ROUNDS + 1}, f"--rounds must be at most {MOST_ROUNDS}, not"),
        ({"seed": 2**32}, f"--seed must be at most {2**32 - 1}, not"),
        ({"epochs": 0}, "--epochs must be at least 1, not 0"),
        ({"output_dir": ""}, "--output_dir must name a folder"),
        ({"data": "coco"}, "--data_root: name it; --data coco is read from there"),
        ({"data": "flickr30k", "data_root": "none"}, "--data_root: none is not a folder"),
        ({"data_root": "."}, "--data_root: the emoji come from packages"),
        ({"augment": "paper"}, "--augment paper needs images that go through every layer"),
        ({"augment": "paper", "unfreeze": "heads"}, "--augment paper needs images that go"),
        ({"augment": "paper", "unfreeze": "heads", "model": "RN50"}, "--augment paper needs"),
        ({"aggregate": "captions"}, "--aggregate must be none or images or texts or both"),
    ],
)
def test_options_of_finetune(options, message):
    with pytest.raises(OptionError) as raised:
        Config(**options)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    "options",
    [{"unfreeze": "all"}, {"unfreeze": "all", "model": "RN50"}, {"model": "RN50"}],
)
def test_augmentation_where_nothing_is_kept(options):
    assert Config(augment="paper", **options).augment == "paper"


@pytest.mark.parametrize("sizes", [["50", "20"], ["20", "20"]])
def test_batch_sizes_of_the_memory_study_increase(sizes, capsys):
    code, message = outcome("memory", ["--sizes", *sizes], capsys)
    assert code == 2
    assert "--sizes must name batch sizes in increasing order" in message


def test_rounds_are_as_many_as_the_loss_takes():
    (allowed,) = Rounds.__metadata__
    assert allowed.most == MOST_ROUNDS


@pytest.mark.parametrize("seeds", [["1", "1"], ["3", "4", "3"]])
@pytest.mark.parametrize("command", ["compare", "cma_clip.study"])
def test_a_seed_counts_once(command, seeds, capsys):
    code, message = outcome(command, ["--seeds", *seeds], capsys)
    assert code == 2
    assert "--seeds must name different seeds" in message


@pytest.mark.parametrize("given", [["--loss", "clip"], ["--seed", "7"]])
def test_the_comparison_refuses_what_it_chooses_itself(given, capsys, tmp_path):
    code, message = outcome("compare", [*given, "--output_dir", str(tmp_path)], capsys)
    assert code == 2
    assert f"{given[0]} {given[1]}: the comparison chooses it" in message


FOLDERS = [(c, n) for c, n, _ in options() if n in ("output_dir", "results_dir", "cache_dir")]


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """Data and models, whatever the command."""

    def refuse(*_, **__):
        raise AssertionError("loaded before the folders were tried")

    for place in (
        "examples.finetune.train.build_encoders",
        "examples.finetune.train.load_instances",
        "examples.studies.compare.__main__.build_encoders",
        "examples.studies.ablation.__main__.load",
        "examples.studies.memory.study.run",
        "examples.studies.cma_clip.prepare.load_data",
        "examples.studies.cma_clip.study.load_data",
        "examples.studies.cma_clip.rows.study.load_data",
        "examples.studies.stamps.__main__.load",
    ):
        monkeypatch.setattr(place, refuse)


@pytest.fixture
def read_only(tmp_path):
    """A folder that nobody writes to."""
    folder = tmp_path / "read only"
    folder.mkdir()
    folder.chmod(0o555)
    if not os.access(folder, os.W_OK):
        yield folder
        return
    # The superuser may write anywhere but to what is mounted read-only.
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a read-only folder needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(("command", "name"), FOLDERS)
def test_a_folder_that_cannot_be_written_to(
    command, name, capsys, tmp_path, read_only, nothing_is_loaded
):
    (tmp_path / "file").write_text("not a folder")
    others = [n for c, n in FOLDERS if c == command and n != name]
    rest = [part for n in others for part in (f"--{n}", str(tmp_path / n))]
    for folder in (read_only, read_only / "new", tmp_path / "file", tmp_path / "file" / "new"):
        code, message = outcome(command, [f"--{name}", str(folder), *rest], capsys)
        assert code == 2, folder
        assert f"--{name} must name a folder that files can be written to, not {folder}" in message


def test_a_folder_of_checkpoints_that_cannot_be_written_to(tmp_path, capsys, nothing_is_loaded):
    (tmp_path / "checkpoints").write_text("not a folder")
    code, message = outcome("finetune", ["--output_dir", str(tmp_path)], capsys)
    assert code == 2
    assert (
        f"--output_dir must name a folder that files can be written to, not {tmp_path}" in message
    )


def test_trying_a_folder_leaves_nothing_behind(tmp_path):
    require_writable("output_dir", tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())


@pytest.mark.parametrize("command", ["ablation", "memory", "cma_clip", "cma_clip.study"])
def test_studies_of_one_process_refuse_more(command, capsys, monkeypatch, nothing_is_loaded):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, message = outcome(command, [], capsys)
    assert code == 2
    assert (
        f"python -m examples.studies.{command} runs in one process, and was started in 2" in message
    )
    monkeypatch.setenv("WORLD_SIZE", "1")
    require_one_process(command)


@pytest.mark.parametrize(
    "given",
    [
        {"pretrained": "FILE", "model": "RN50"},
        {"model": "local-dir:nowhere"},
        {"model": "local-dir:."},
    ],
)
def test_a_model_that_open_clip_cannot_load(given, tmp_path, monkeypatch, capsys):
    pytest.importorskip("open_clip")
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("no weights")
    monkeypatch.setattr("examples.finetune.train.load_instances", None)
    arguments = [part for n, v in given.items() for part in (f"--{n}", v)]
    assert finetune([*arguments, "--cpu", "true"]) == 2
    (name, value), *_ = given.items()
    assert f"error: --{name} {value}: open_clip cannot load it: " in capsys.readouterr().err


def test_data_of_the_ablation(capsys, monkeypatch, tmp_path):
    def no_renderer(*_):
        raise RuntimeError("rendering needs PyVista")

    folders = ["--cache_dir", str(tmp_path), "--results_dir", str(tmp_path)]
    furniture = "examples.studies.ablation.furniture"
    monkeypatch.setitem(sys.modules, furniture, None)  # its packages are not installed
    code, message = outcome("ablation", ["--data", "furniture", *folders], capsys)
    assert code == 2
    assert "error: --data furniture needs mxm-kernels[furniture]: " in message
    monkeypatch.setitem(sys.modules, furniture, SimpleNamespace(load_furniture=no_renderer))
    code, message = outcome("ablation", ["--data", "furniture", *folders], capsys)
    assert (code, message) == (2, "error: --data furniture: rendering needs PyVista")
    code, message = outcome("ablation", ["--data_root", ".", *folders], capsys)
    assert (code, message[:20]) == (2, "error: --data_root: ")
    (tmp_path / "emoji.json").write_text("{")
    code, message = outcome("ablation", ["--tables_only", *folders], capsys)
    assert code == 2
    assert f"--tables_only: {tmp_path / 'emoji.json'} is not JSON" in message


def test_a_disk_that_is_full_ends_every_command_with_a_line(monkeypatch, tmp_path, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "study.md")

    folders = {"output_dir": tmp_path, "results_dir": tmp_path, "cache_dir": tmp_path}
    monkeypatch.setattr("examples.finetune.train.run", full)
    monkeypatch.setattr("examples.studies.compare.__main__.compare", full)
    monkeypatch.setattr("examples.studies.ablation.__main__.run", full)
    monkeypatch.setattr("examples.studies.memory.study.run", full)
    monkeypatch.setattr("examples.studies.cma_clip.__main__.classify", full)
    monkeypatch.setattr("examples.studies.cma_clip.study.run_study", full)
    monkeypatch.setattr("examples.studies.cma_clip.rows.__main__.run_study", full)
    monkeypatch.setattr("examples.studies.stamps.__main__.run", full)
    for command in COMMANDS:
        taken = [n for c, n in FOLDERS if c == command]
        arguments = [part for n in taken for part in (f"--{n}", str(folders[n]))]
        code, message = outcome(command, arguments, capsys)
        assert (code, message) == (1, "error: [Errno 28] No space left on device: 'study.md'")


def test_a_number_without_a_range_fails_the_tests_above():
    """What they would say of an option that nobody checks."""
    from dataclasses import dataclass

    @dataclass
    class Unchecked(OptionGroup):
        share: float = option(0.5, "a share")

    assert Unchecked(share=-1.0).share == -1  # not refused, so the first test would fail
    assert Range(0, 1).expected(-1.0, float) == "be at least 0"
