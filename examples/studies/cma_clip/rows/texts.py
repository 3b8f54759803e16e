"""Texts beside the data set's captions: captions with a class name put in, and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from examples.data.instances import Instance
from examples.data.multifold import Observations
from examples.files import is_kept, require_kept, write_kept
from examples.finetune.inputs import build_encoders, observe
from examples.studies.cma_clip.config import Config
from examples.studies.cma_clip.data import PairSplit
from examples.studies.cma_clip.prepare import DataSet, device_of

from .naming import captions_of, spoken, with_names

TEMPLATES = ("{}", "a picture of {}", "an emoji of {}")


@dataclass
class Texts:
    """The data set's observations with more texts behind its captions.

    `right` and `wrong` give, for the row of a caption that lacks its class names, the row of the
    same caption with the right names put in, or with those of other classes. `prompts` gives the
    rows of each class of a task: one for each template.
    """

    observations: Observations
    right: dict[int, int]
    wrong: dict[int, int]
    prompts: dict[str, list[list[int]]]

    def put_in(self, split: PairSplit, kind: str) -> PairSplit:
        """Let every caption of a split that lacks its class names have some: right or wrong."""
        split.replaced["text"] = getattr(self, kind)
        return split

    def put_in_some(self, split: PairSplit, share: float, seed: int) -> PairSplit:
        """Let a random share of the captions that lack their class names have the right ones."""
        rng = np.random.default_rng(seed)
        chosen = {row: named for row, named in self.right.items() if rng.random() < share}
        split.replaced["text"] = chosen
        return split


def load_texts(config: Config, data: DataSet, file: Path) -> Texts:
    """Texts of a data set; the activations of the encoders' frozen layers are kept in a file."""
    captions = [c for c in captions_of(data.instances, data.labels) if c.lacks]
    prompts = [
        template.format(spoken(name))
        for names in data.labels.classes.values()
        for name in names
        for template in TEMPLATES
    ]
    strings = [with_names(c.text, c.names) for c in captions]
    strings += [with_names(c.text, c.wrong) for c in captions]
    inputs = encode(config, [*strings, *prompts], file)
    own = data.observations
    first, count = len(own.texts), len(captions)
    rows = iter(range(first + 2 * count, first + len(inputs)))
    texts = [*own.texts, *inputs]
    ids = torch.cat([own.text_ids, torch.full((len(inputs),), -1)])
    return Texts(
        Observations(own.images, texts, own.image_ids, ids),
        {c.row: first + place for place, c in enumerate(captions)},
        {c.row: first + count + place for place, c in enumerate(captions)},
        {
            task: [[next(rows) for _ in TEMPLATES] for _ in names]
            for task, names in data.labels.classes.items()
        },
    )


def encode(config: Config, strings: Sequence[str], file: Path) -> list[torch.Tensor]:
    """Model inputs of some texts: activations of the frozen layers, or token ids without those."""
    if is_kept(file):
        return torch.load(require_kept(file), weights_only=True)
    encoders = build_encoders(config.encoder_config())
    only_texts = [Instance("texts", (), tuple(strings))]
    inputs = list(observe(only_texts, encoders, device_of(config), progress=False).texts)
    write_kept(file, lambda path: torch.save(inputs, path))
    return inputs
