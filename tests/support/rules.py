"""Offsets, ids and filters of a test's batch, and which pairs they remove from a matrix."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

from reference import rules
from tests.support.cases import Case

MARGIN = 0.1
IDS = 3  # different ones, and -1


class Rules:
    """The rules of a case, images first; those of its queues by the queues' names."""

    def __init__(self, case: Case, queues: dict[str, int]) -> None:
        g = torch.Generator().manual_seed(case.seed + 13)
        sizes = {"images": len(case.image_ids), "texts": len(case.text_ids), **queues}
        s = 1 / case.temperature

        def numbers() -> dict[str, Tensor]:
            made = {}
            for name, size in sizes.items():
                made[name] = (torch.rand(size, generator=g, dtype=torch.float64) - 0.5) * s
            return made

        def ids() -> dict[str, Tensor]:
            return {n: torch.randint(-1, IDS, (size,), generator=g) for n, size in sizes.items()}

        self.offsets, self.teacher_offsets = numbers(), numbers()
        self.exclude_ids, self.within_ids = ids(), ids()
        self.thresholds = {name: v * case.temperature for name, v in numbers().items()}
        if sizes["images"]:
            self.thresholds["images"][0] = torch.inf

    def side(self, numbers: dict[str, Tensor], k: int, queue: str | None) -> tuple[Tensor, Tensor]:
        """(rows,) and (columns,) of one direction, whose columns may end with a queue's."""
        names = ("images", "texts") if k == 0 else ("texts", "images")
        columns = numbers[names[1]]
        if queue is not None:
            columns = torch.cat([columns, numbers[queue].to(columns)])
        return numbers[names[0]], columns

    def removed(
        self, choice: Any, k: int, queue: str | None, similarities: Tensor, positives: Tensor
    ) -> Tensor:
        """(rows, columns) which pairs are no negatives of their rows; some may be positives."""
        out = torch.zeros_like(positives)
        if choice.exclude_ids:
            out |= rules.excluded(*self.side(self.exclude_ids, k, queue))
        if choice.within_ids:
            out |= rules.outside(*self.side(self.within_ids, k, queue))
        if choice.filter_margin is None:
            return out
        if choice.filter_margin == "thresholds":
            limit = self.thresholds[("images", "texts")[k]].to(similarities)
        else:
            limit = rules.thresholds(similarities, positives, MARGIN, choice.filter_margin)
        return out | rules.above(similarities, limit)

    def within(self, choice: Any, similarities: Tensor, positives: Tensor) -> Tensor:
        """The same inside one modality, of the images, whose ids are those of both sides."""
        alone = copy(self)
        for name in ("exclude_ids", "within_ids", "thresholds"):
            of_images = getattr(self, name)["images"]
            setattr(alone, name, dict.fromkeys(("images", "texts"), of_images))
        return alone.removed(choice, 0, None, similarities, positives)
