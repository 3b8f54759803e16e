import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from examples.finetune.config import Config
from examples.finetune.inputs import build_encoders
from examples.finetune.train import run

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A configuration of a user, registered under its file name."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-vit.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    return "tiny-vit"


def tiny_config(tiny, model, **options):
    return Config(
        **{**tiny, "model": model, "max_steps": 3, "limit": 4, "batch_size": 2, **options}
    )


@pytest.mark.parametrize(
    ("unfreeze", "loss"), [("all", "mfh"), ("top", "mfh"), ("heads", "mfh"), ("all", "clip")]
)
def test_any_open_clip_model_is_trained(unfreeze, loss, tiny, model):
    config = tiny_config(tiny, model, unfreeze=unfreeze, loss=loss)
    start = {k: v.clone() for k, v in seeded_model(config).state_dict().items()}
    result = run(config)
    assert len(result.losses) == 3
    after = load_file(Path(tiny["output_dir"]) / "model.safetensors")
    moved = {name for name in after if not torch.equal(after[name], start[name])}
    assert "log_scale" in moved
    if unfreeze == "heads":
        assert moved == set(start) == {"log_scale", "image_tower.weight", "text_tower.weight"}
    else:
        lower = "clip.visual.transformer.resblocks.0.attn.in_proj_weight"
        upper = "clip.visual.transformer.resblocks.1.attn.in_proj_weight"
        assert (lower in moved) == (unfreeze == "all")
        assert upper in moved
        assert {"clip.visual.proj", "clip.text_projection"} <= moved


def seeded_model(config):
    torch.manual_seed(config.seed)
    return build_encoders(config).model


def test_pretrained_weights_come_from_a_file(tiny, model, tmp_path):
    torch.manual_seed(7)
    weights = open_clip.create_model(model).state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    config = tiny_config(tiny, model, pretrained=str(tmp_path / "weights.pt"))
    loaded = build_encoders(config).model.clip.state_dict()
    torch.testing.assert_close(loaded["visual.conv1.weight"], weights["visual.conv1.weight"])


def test_frozen_features_are_kept_by_the_first_heads(tiny, model):
    config = tiny_config(tiny, model, unfreeze="heads")
    encoders = build_encoders(config)
    tokens = encoders.tokenize("a red apple")[None]
    features = encoders.trunk.text_tower(tokens, torch.tensor([len(tokens)]))
    head = encoders.model.encode_texts(features, torch.tensor([16]))
    torch.testing.assert_close(head, torch.nn.functional.normalize(features, dim=-1))
