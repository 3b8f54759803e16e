"""Noise in one modality: some observations show another instance.

The paper's reason for modality-wise attention is that a retailer uploads the wrong picture, or a
user writes something that has nothing to do with it (section 3.2). Here a share of the images, or
of the captions, of a split is replaced by one of another instance of the same split, once and for
all: neither the labels nor the folds know of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Modality = Literal["image", "text"]


@dataclass(frozen=True)
class Noise:
    """Which modality is noisy, and the share of its observations that are.

    Args:
        modality: "image" or "text".
        rate: share of the modality's observations, in [0, 1].
        seed: of the draw.

    """

    modality: Modality
    rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.modality not in ("image", "text"):
            raise ValueError(f"modality must be 'image' or 'text', got {self.modality!r}")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate must lie in [0, 1], got {self.rate}")

    def sources(self, groups: Sequence[Sequence[int]], split: str) -> dict[int, int]:
        """Draw the noisy rows of a split, each with the row that takes its place.

        Args:
            groups: rows of the modality, by instance.
            split: name of the split; every split has its own draw.

        Returns:
            The replacing row of every noisy row. It belongs to another instance.

        """
        if len(groups) < 2:
            raise ValueError(f"noise needs two instances or more, got {len(groups)}")
        rng = np.random.default_rng((self.seed, *split.encode()))
        replaced = {}
        for index, rows in enumerate(groups):
            for row in rows:
                if rng.random() < self.rate:
                    other = (index + 1 + int(rng.integers(len(groups) - 1))) % len(groups)
                    replaced[row] = int(rng.choice(groups[other]))
        return replaced
