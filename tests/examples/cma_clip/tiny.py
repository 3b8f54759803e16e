"""A small open_clip model, and a data set for it."""

import json

import open_clip
import torch

from examples.data.multifold import Observations, flatten
from examples.studies.cma_clip.data import Labels

VISION = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 64, "width": 24, "heads": 2, "layers": 2}
END = 63  # the largest id, which CLIP pools
CLASSES = {"shape": 2, "colour": 3}

# Options of a run that takes seconds.
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


def make_clip(tmp_path, **changes):
    """A small open_clip model of random weights; `vision`, `text` change its towers."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {**VISION, **changes.get("vision", {})},
        "text_cfg": {**TEXT, **changes.get("text", {})},
        **changes.get("top", {}),
    }
    name = f"tiny-{abs(hash(json.dumps(config, sort_keys=True)))}"
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(0)
    return open_clip.create_model(name).eval()


def caption(*words):
    """Token ids of a caption: start, words, end, padding."""
    ids = [1, *words, END]
    return torch.tensor(ids + [0] * (TEXT["context_length"] - len(ids)))


def observations(instances, seed=0):
    """Two images and three captions of each of some instances, of random content."""
    generator = torch.Generator().manual_seed(seed)
    images, image_ids = flatten(
        [[torch.randn(3, 16, 16, generator=generator) for _ in range(2)] for _ in range(instances)]
    )
    texts, text_ids = flatten(
        [[caption(2 + i % 60, 2 + (i + k) % 60) for k in range(3)] for i in range(instances)]
    )
    return Observations(images, texts, image_ids, text_ids)


def make_labels(instances):
    of = {task: torch.arange(instances) % count for task, count in CLASSES.items()}
    return Labels({t: [str(i) for i in range(c)] for t, c in CLASSES.items()}, of)


def command(options, *more):
    """A command line of options."""
    return [part for k, v in options.items() for part in (f"--{k}", str(v))] + list(more)
