"""Features of the frozen encoders, made once for a data set and kept in a file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from examples.data.instances import Instance
from examples.files import is_kept, write_kept
from examples.finetune.config import Config
from examples.finetune.inputs import build_encoders, observe


@dataclass(frozen=True)
class FeatureSet:
    """Inputs of the heads: the frozen encoders' features of some instances."""

    images: Tensor  # (M, image width)
    texts: Tensor  # (N, text width)
    image_ids: Tensor  # (M,) int64, the instance of each image
    text_ids: Tensor  # (N,) int64

    @property
    def instances(self) -> int:
        """Number of instances."""
        return len(torch.cat([self.image_ids, self.text_ids]).unique())

    def of(self, instances: Tensor) -> "FeatureSet":
        """The part of some instances, given by their ids."""
        images = torch.isin(self.image_ids, instances)
        texts = torch.isin(self.text_ids, instances)
        return FeatureSet(
            self.images[images], self.texts[texts], self.image_ids[images], self.text_ids[texts]
        )


def cached_features(instances: Sequence[Instance], path: Path) -> FeatureSet:
    """Read the features of these instances from a file, or make them and write it."""
    digest = hashlib.sha256(
        json.dumps([(i.name, len(i.images), i.captions) for i in instances]).encode()
    ).hexdigest()
    if not is_kept(path) or metadata(path).get("instances") != digest:
        path.parent.mkdir(parents=True, exist_ok=True)
        features = {k: v.contiguous() for k, v in vars(encode(instances)).items()}
        write_kept(path, lambda file: save_file(features, file, {"instances": digest}))
    return read_features(path)


def read_features(path: Path) -> FeatureSet:
    """Features of a file that :func:`cached_features` wrote."""
    with safe_open(path, "pt") as file:
        return FeatureSet(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def metadata(path: Path) -> dict[str, str]:
    """What the file says about itself."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def encode(instances: Sequence[Instance]) -> FeatureSet:
    """Run MiniLM and EfficientNet-Lite0, as their packages ship them, over the instances."""
    made = observe(instances, build_encoders(Config(unfreeze="heads")))
    return FeatureSet(
        torch.stack(list(made.images)), torch.stack(list(made.texts)), made.image_ids, made.text_ids
    )
