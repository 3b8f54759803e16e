"""open_clip's training program on a tiny model, for the tests that run it."""

import json
import logging

import pytest
import torch

from tests.support.open_clip_program import CAPTIONS, COLOURS

MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TOKENS = {"layers": 1, "width": 16, "heads": 2, "context_length": 12, "vocab_size": 49408}
COCA = {
    "embed_dim": 16,
    "multimodal_cfg": {**TOKENS, "attn_pooler_heads": 2, "n_queries": 4},
    "vision_cfg": {
        **MODEL["vision_cfg"],
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "attn_pooler_queries": 4,
        "output_tokens": True,
    },
    "text_cfg": {**TOKENS, "embed_cls": True, "output_tokens": True},
    "custom_text": True,
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
    """Tiny models, which the program knows by name, and weights: of a frozen teacher, of a CoCa.

    open_clip (2.32 to 3.3) makes CoCa's last projection of uninitialised memory.
    """
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny-for-tests.json").write_text(json.dumps(MODEL))
    (folder / "tiny-coca.json").write_text(json.dumps(COCA))
    open_clip.add_model_config(folder)
    torch.manual_seed(9)
    weights = folder / "teacher.pt"
    torch.save(open_clip.create_model("tiny-for-tests").state_dict(), weights)
    coca = open_clip.create_model("tiny-coca")
    torch.nn.init.normal_(coca.text_decoder.text_projection, std=0.25)
    torch.save(coca.state_dict(), folder / "coca.pt")
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


@pytest.fixture
def csv(tmp_path):
    """A row for each caption; images of one colour each."""
    pandas = pytest.importorskip("pandas")
    Image = pytest.importorskip("PIL.Image")
    rows = []
    for index, (colour, captions) in enumerate(zip(COLOURS, CAPTIONS, strict=True)):
        path = tmp_path / f"{colour}.png"
        Image.new("RGB", (16, 16), colour).save(path)
        rows += [(str(path), f"{colour} square number {k} of {index}") for k in range(captions)]
    table = pandas.DataFrame(rows, columns=["filepath", "title"]).sample(frac=1, random_state=0)
    table.to_csv(tmp_path / "train.csv", sep="\t", index=False)
    return tmp_path / "train.csv"
