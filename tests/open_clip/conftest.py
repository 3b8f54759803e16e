"""open_clip's training program on a tiny model, for the tests that run it."""

import json
import logging

import pytest
import torch

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def one_thread():
    """The models are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny model, which the program knows by name, and a second one as a frozen teacher."""
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny-for-tests.json").write_text(json.dumps(MODEL))
    (folder / "tiny-coca.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(folder)
    torch.manual_seed(9)
    weights = folder / "teacher.pt"
    torch.save(open_clip.create_model("tiny-for-tests").state_dict(), weights)
    return weights


@pytest.fixture
def quiet():
    """The program's handlers go; the next run would write into the last one's file."""
    yield
    for handler in logging.root.handlers[:]:
        if type(handler) in (logging.FileHandler, logging.StreamHandler):
            logging.root.removeHandler(handler)


@pytest.fixture
def exact(monkeypatch):
    """Every loss that the program steps with, unrounded."""
    program = pytest.importorskip("open_clip_train.main")
    seen = []
    real = program.train_one_epoch

    def train_one_epoch(model, data, loss, *rest, **options):
        def recorded(*inputs, **outputs):
            values = loss(*inputs, **outputs)
            seen.append({k: v.item() for k, v in values.items()})
            return values

        return real(model, data, recorded, *rest, **options)

    monkeypatch.setattr(program, "train_one_epoch", train_one_epoch)
    return seen
