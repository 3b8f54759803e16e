"""What a trained model gets right, counted by instance, so that the instances can be resampled."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from examples.studies.cma_clip.data import Pairs
from examples.studies.cma_clip.evaluate import Evaluation
from examples.studies.cma_clip.metrics import threshold_at_precision

KINDS = ("correct", "accepted", "hits")


@dataclass(frozen=True)
class Thresholds:
    """Probability from which on a class is accepted, by task: chosen on validation pairs."""

    of: dict[str, float]

    @classmethod
    def choose(cls, evaluation: Evaluation, precision: float) -> "Thresholds":
        """Those with the largest recall at a precision."""
        labels = evaluation.pairs.labels
        return cls(
            {
                task: threshold_at_precision(logits, labels[task], precision)
                for task, logits in evaluation.logits.items()
            }
        )


def counts(
    evaluation: Evaluation, thresholds: Thresholds, chosen: Tensor | None = None
) -> dict[str, Any]:
    """Counts by instance over all pairs, or over those of a mask (B,).

    Returns:
        "instances" and their "pairs", and by task, for each instance: "correct" pairs, "accepted"
        classes (those whose probability reaches the threshold), and "hits", accepted ones that
        are right.

    """
    kept = torch.ones(len(evaluation.pairs), dtype=torch.bool) if chosen is None else chosen
    instances, places = evaluation.pairs.instances[kept].unique(return_inverse=True)
    by_task = {}
    for task, logits in evaluation.logits.items():
        labels = evaluation.pairs.labels[task][kept]
        probabilities = logits[kept].double().softmax(dim=1)
        accepted = probabilities >= thresholds.of[task]
        values = {
            "correct": probabilities.argmax(1) == labels,
            "accepted": accepted.sum(1),
            "hits": accepted.gather(1, labels[:, None])[:, 0],
        }
        by_task[task] = {
            kind: total(values[kind], places, len(instances)).tolist() for kind in KINDS
        }
    ones = torch.ones(len(places), dtype=torch.long)
    return {
        "instances": instances.tolist(),
        "pairs": total(ones, places, len(instances)).tolist(),
        "tasks": by_task,
    }


def total(values: Tensor, places: Tensor, count: int) -> Tensor:
    """Sum of values (B,) by place."""
    return torch.zeros(count, dtype=torch.long).index_add(0, places, values.long())


def text_weights(evaluation: Evaluation, chosen: Tensor) -> dict[str, float]:
    """Mean weight of the text, by task, over the pairs of a mask (B,)."""
    means = {task: 1 - w[chosen].mean() for task, w in evaluation.image_weight.items()}
    return {task: float(mean) for task, mean in means.items()}


def changed(pairs: Pairs) -> Tensor:
    """Pairs (B,) whose image or text was replaced."""
    return pairs.noisy_image | pairs.noisy_text
