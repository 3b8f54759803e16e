"""Predictions for all pairs of a split, and their metrics."""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import metrics
from .data import Pairs
from .model import CMAClip
from .sources import TokenSource

CHUNK = 256


@dataclass
class Evaluation:
    """Predictions for the pairs: logits (B, classes) and image weights (B,) of every task."""

    pairs: Pairs
    logits: dict[str, Tensor]
    image_weight: dict[str, Tensor]

    def accuracy(self, rows: Tensor | None = None) -> dict[str, float]:
        """Accuracy of every task, in percent, over all pairs or those of a mask (B,)."""
        chosen = slice(None) if rows is None else rows
        return {
            task: metrics.accuracy(logits[chosen], self.pairs.labels[task][chosen])
            for task, logits in self.logits.items()
        }

    def recall(self, precision: float) -> dict[str, float]:
        """Recall at a precision of every task, in percent."""
        return {
            task: metrics.recall_at_precision(logits, self.pairs.labels[task], precision)
            for task, logits in self.logits.items()
        }


@torch.no_grad()
def evaluate(model: CMAClip, pairs: Pairs, source: TokenSource) -> Evaluation:
    """Predict for all pairs, in evaluation mode."""
    model.eval()
    predictions = []
    for start in range(0, len(pairs), CHUNK):
        part = pairs[start : start + CHUNK]
        predictions.append(model(*source.tokens(part.images, part.texts)))
    tasks = list(pairs.labels)
    return Evaluation(
        pairs,
        {t: torch.cat([p.logits[t].float().cpu() for p in predictions]) for t in tasks},
        {t: torch.cat([p.image_weight[t].float().cpu() for p in predictions]) for t in tasks},
    )
