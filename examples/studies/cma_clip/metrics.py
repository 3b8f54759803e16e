"""Accuracy and recall at a precision, by torchmetrics."""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics.functional.classification import (
    binary_recall_at_fixed_precision,
    multiclass_accuracy,
)

ROUNDING = 1e-6


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of the pairs whose best class is right, in percent; logits (B, C), labels (B,)."""
    value = multiclass_accuracy(logits, labels, num_classes=logits.shape[1], average="micro")
    return 100 * float(value)


def recall_at_precision(logits: Tensor, labels: Tensor, precision: float = 0.9) -> float:
    """Largest recall at a precision of at least `precision`, in percent, over all classes together.

    Every class of every pair is accepted whose probability reaches one common threshold (the
    micro average: a threshold for each class would be chosen on a handful of emoji). 0 if no
    threshold reaches the precision.
    """
    return 100 * recall_and_threshold(logits, labels, precision)[0]


def threshold_at_precision(logits: Tensor, labels: Tensor, precision: float = 0.9) -> float:
    """Probability from which on `recall_at_precision` accepts a class; infinite if it is 0."""
    recall, threshold = recall_and_threshold(logits, labels, precision)
    return threshold if recall > 0 else math.inf


def recall_and_threshold(logits: Tensor, labels: Tensor, precision: float) -> tuple[float, float]:
    """Largest recall at a precision, in [0, 1], and its threshold."""
    probabilities = logits.double().softmax(dim=1)
    truth = one_hot(labels, logits.shape[1])
    # torchmetrics divides in float32, where 45 / 50 is a little less than 0.9.
    recall, threshold = binary_recall_at_fixed_precision(
        probabilities.flatten(), truth.flatten(), min_precision=precision - ROUNDING
    )
    return float(torch.nan_to_num(recall)), float(threshold)
