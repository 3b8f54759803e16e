"""What the stages start from: the data, and encoders that the multifold loss has aligned.

The paper starts from OpenAI's CLIP. An open_clip model with `--pretrained` and
`--alignment_epochs 0` does the same. The packaged encoders have never seen each other, so
examples.finetune aligns them first on the training split, without noise, with the MFH loss.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file

from examples.data.emoji import load_emoji
from examples.data.instances import Instance, random_splits
from examples.data.multifold import Observations, flatten
from examples.encoders.dual import DualEncoder
from examples.files import is_kept, require_kept, write_kept
from examples.finetune.config import Config as EncoderConfig
from examples.finetune.inputs import Material, build_encoders, observe
from examples.finetune.train import run

from .config import Config
from .data import Labels, PairSplit, label, rows_by_instance
from .noise import Noise


@dataclass
class DataSet:
    """All emoji, what the encoders take of them, and their labels."""

    instances: list[Instance]
    observations: Observations
    labels: Labels

    def members(self, split: str, seed: int) -> list[int]:
        """Places of the instances of a split."""
        place = {instance.name: i for i, instance in enumerate(self.instances)}
        chosen = getattr(random_splits(self.instances, seed), split)
        return [place[instance.name] for instance in chosen]

    def pairs(self, split: str, seed: int, noise: Noise | None = None) -> PairSplit:
        """Pairs of a split."""
        members = self.members(split, seed)
        return PairSplit(self.observations, self.labels, members, split, noise)

    def subset(self, members: list[int]) -> Observations:
        """Observations of some instances."""
        data = self.observations
        images, texts = rows_by_instance(data.image_ids), rows_by_instance(data.text_ids)
        image_inputs, image_ids = flatten([[data.images[r] for r in images[i]] for i in members])
        text_inputs, text_ids = flatten([[data.texts[r] for r in texts[i]] for i in members])
        return Observations(image_inputs, text_inputs, image_ids, text_ids)


@lru_cache(maxsize=1)
def chosen_emoji(limit: int) -> list[Instance]:
    """All emoji, or `limit` of them evenly spaced in Unicode's order."""
    instances = load_emoji()
    if not limit or limit >= len(instances):
        return instances
    return [instances[i * len(instances) // limit] for i in range(limit)]


def device_of(config: Config) -> torch.device:
    """Device of a run."""
    accelerated = torch.cuda.is_available() and not config.cpu
    return torch.device("cuda" if accelerated else "cpu")


def load_data(config: Config, file: Path | None = None, progress: bool = True) -> DataSet:
    """Render the emoji and run the encoders' frozen lower layers over them.

    Encoders without frozen layers in front take the images themselves, rendered when asked for.

    Args:
        config: options.
        file: keeps the activations of the frozen layers; read if it is there.
        progress: show progress bars.

    """
    instances = chosen_emoji(config.limit)
    labels = label(instances, config.min_instances)
    if file is not None and is_kept(file):
        return DataSet(instances, Observations(**torch.load(file, weights_only=True)), labels)
    set_seed(0)
    encoders = build_encoders(config.encoder_config())
    observations = observe(instances, encoders, device_of(config), progress)
    if file is not None and encoders.trunk is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_kept(file, lambda path: torch.save(vars(observations), path))
    return DataSet(instances, observations, labels)


def aligned_encoders(config: Config, data: DataSet, progress: bool = True) -> DualEncoder:
    """Dual encoder that the stages start from."""
    if config.alignment_epochs == 0:
        return kept_encoders(config)
    training, validation = (data.members(split, config.seed) for split in ("train", "val"))
    material = Material(
        [data.instances[i] for i in validation], data.subset(training), data.subset(validation)
    )
    run(config.encoder_config(), material, progress_bar=progress)
    return kept_encoders(config)


def kept_encoders(config: Config) -> DualEncoder:
    """Dual encoder that the stages start from, once it has been aligned."""
    options = config.encoder_config()
    return load_encoders(options) if config.alignment_epochs else fresh_encoders(options)


def fresh_encoders(options: EncoderConfig) -> DualEncoder:
    """Dual encoder as examples.finetune starts with it."""
    set_seed(options.seed)
    return build_encoders(options).model


def load_encoders(options: EncoderConfig) -> DualEncoder:
    """Dual encoder as examples.finetune left it."""
    model = fresh_encoders(options)
    model.load_state_dict(load_file(require_kept(options.output_path / "model.safetensors")))
    return model
