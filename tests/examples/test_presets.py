"""The presets are the paper's tables, and what stands on the command line wins over them."""

import pytest
import torch

from examples.errors import OptionError
from examples.finetune import __main__ as command
from examples.finetune.config import Config
from examples.finetune.presets import PRESETS, TABLES
from examples.finetune.train import Trainer, make_accelerator
from examples.options import parse
from tests.support.tiny_run import tiny_encoders, tiny_material

# Table, encoder: learning rate, weight decay, images and texts in a batch; from the paper, by hand.
IN_THE_PAPER = """
6 text2shape           RN101    1e-5 0.01 420 350
6 text2shape           ViT-B-32 1e-6 0.04 420 350
6 text2shape           ViT-B-16 1e-6 0.04 420 350
7 text2shape-agg-image RN101    1e-5 0.01 420 350
7 text2shape-agg-image ViT-B-32 1e-6 0.04 420 350
7 text2shape-agg-image ViT-B-16 1e-6 0.04 420 350
8 text2shape-agg-text  RN101    1e-5 0.01 240 200
8 text2shape-agg-text  ViT-B-32 1e-6 0.04 240 200
8 text2shape-agg-text  ViT-B-16 1e-6 0.04 240 200
9 flickr30k            RN101    1e-5 0.01 80 400
9 flickr30k            ViT-B-32 1e-6 0.01 80 400
9 flickr30k            ViT-B-16 1e-6 0.01 80 400
"""
COLUMNS = [line.split() for line in IN_THE_PAPER.strip().splitlines()]


def test_the_presets_are_the_tables_columns():
    assert list(PRESETS) == [f"{task}-{encoder.lower()}" for _, task, encoder, *_ in COLUMNS]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: "-".join(column[1:3]))
def test_a_preset_has_the_values_of_its_column(column, tmp_path):
    number, task, encoder, *numbers = column
    lr, weight_decay, images, texts = map(float, numbers)
    preset = PRESETS[f"{task}-{encoder.lower()}"]
    (table,) = (table for table in TABLES if table.task == task)
    assert table.number == int(number)
    assert table.batch == (images, texts)
    assert (table.views, table.captions) == ((1, 5) if task == "flickr30k" else (6, 5))
    assert preset["batch_size"] * table.views == images
    assert preset["batch_size"] * table.captions == texts
    aggregate = {7: {"aggregate": "images"}, 8: {"aggregate": "texts"}}.get(int(number), {})
    data = {"data": "flickr30k"} if task == "flickr30k" else {}
    assert preset == {
        "model": f"{encoder}-quickgelu",
        "pretrained": "openai",
        "unfreeze": "all",
        "batch_size": preset["batch_size"],
        "temperature": 0.03,
        "lr": lr,
        "head_lr": lr,
        "weight_decay": weight_decay,
        "epochs": 10,
        "seed": 2022,
        **aggregate,
        **data,
    }
    root = {"data_root": str(tmp_path)} if data else {}
    assert vars(Config(**preset, **root)).items() >= preset.items()


@pytest.mark.parametrize("preset", PRESETS)
def test_open_clip_has_the_models_with_the_activation_of_their_weights(preset):
    open_clip = pytest.importorskip("open_clip")
    model, tag = PRESETS[preset]["model"], PRESETS[preset]["pretrained"]
    weights = open_clip.get_pretrained_cfg(model, tag)
    assert weights["quick_gelu"]
    assert open_clip.get_model_config(model)["quick_gelu"]


def test_optimiser_and_scheduler_are_the_tables():
    config = Config(cpu=True, learn_temperature=False)
    accelerator = make_accelerator(config)
    encoders = tiny_encoders(config)
    material = tiny_material(config, encoders, accelerator)
    trainer = Trainer(config, accelerator, encoders.model, material)
    adam, schedule = trainer.optimizer.optimizer, trainer.schedule.scheduler
    assert isinstance(adam, torch.optim.Adam)
    assert (adam.defaults["betas"], adam.defaults["eps"]) == ((0.9, 0.999), 1e-4)
    assert isinstance(schedule, torch.optim.lr_scheduler.CosineAnnealingLR)


@pytest.fixture
def configured(monkeypatch):
    """Configurations that the command would run."""
    seen = []
    monkeypatch.setattr(command, "fine_tune", seen.append)
    return seen


def test_the_command_line_wins_over_the_preset(configured):
    name = "text2shape-agg-text-vit-b-32"
    assert command.main(["--lr", "1e-4", "--preset", name, "--unfreeze", "top"]) == 0
    assert command.main([f"--preset={name}"]) == 0
    assert command.main([]) == 0
    changed, plain, without = configured
    assert vars(plain).items() >= PRESETS[name].items()
    assert vars(changed) == {**vars(plain), "lr": 1e-4, "unfreeze": "top"}
    assert without == Config()


def test_values_of_the_preset_count_when_a_run_is_resumed(configured):
    command.main(["--preset", "text2shape-agg-image-rn101"])
    (config,) = configured
    compared = config.numeric_options()
    assert compared.items() >= PRESETS["text2shape-agg-image-rn101"].items()
    assert {"learn_temperature", "augment", "aggregate"} <= compared.keys()


def test_an_unknown_preset_is_answered_with_all_of_them(configured, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--preset", "text2shape-rn50"])
    assert ended.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "argument --preset: invalid choice: 'text2shape-rn50'" in message
    assert all(name in message for name in PRESETS)
    assert not configured


def test_a_preset_of_flickr30k_asks_for_its_folder(configured, capsys):
    assert command.main(["--preset", "flickr30k-rn101"]) == 2
    assert "--data_root: name it; --data flickr30k is read from there" in capsys.readouterr().err


def test_the_help_lists_the_presets(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in "".join(text.split()) for name in PRESETS)


def test_a_command_without_presets_takes_none(capsys):
    with pytest.raises(SystemExit):
        parse(["--preset", "flickr30k-rn101"], [Config], "other", None)
    assert "unrecognized arguments: --preset" in capsys.readouterr().err


def test_values_of_a_preset_are_checked_as_any_others():
    wrong = {"fast": {"lr": 3.0}}
    with pytest.raises(OptionError, match=r"--lr must lie in \[0, 1\], not 3.0"):
        parse(["--preset", "fast"], [Config], "other", None, wrong)
    assert parse(["--preset", "fast", "--lr", "0.5"], [Config], "other", None, wrong)[0].lr == 0.5
