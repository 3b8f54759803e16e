import pytest
import torch

from examples.studies.cma_clip.metrics import accuracy, recall_at_precision, threshold_at_precision


def brute_force(logits, labels, precision):
    probabilities = logits.double().softmax(1)
    best = 0.0
    for threshold in probabilities.flatten():
        accepted = probabilities >= threshold
        right = accepted[torch.arange(len(labels)), labels].sum()
        if right / accepted.sum() >= precision:
            best = max(best, float(right / len(labels)))
    return 100 * best


@pytest.mark.parametrize("precision", [0.75, 0.8, 0.9, 1.0])
def test_recall_is_the_best_of_all_thresholds(precision):
    labels = torch.randint(4, (60,))
    logits = torch.randn(60, 4)
    logits[torch.arange(60), labels] += 2
    want = brute_force(logits, labels, precision)
    assert 0 < want < 100
    assert recall_at_precision(logits, labels, precision) == pytest.approx(want)


def test_the_threshold_accepts_what_the_recall_counts():
    torch.manual_seed(0)
    labels = torch.randint(4, (60,))
    logits = torch.randn(60, 4)
    logits[torch.arange(60), labels] += 2
    accepted = logits.double().softmax(1) >= threshold_at_precision(logits, labels, 0.8)
    right = accepted[torch.arange(60), labels].sum()
    assert right / accepted.sum() >= 0.8
    assert 100 * right / 60 == pytest.approx(recall_at_precision(logits, labels, 0.8))
    assert threshold_at_precision(-logits, labels, 1.0) == float("inf")


def test_the_extremes():
    labels = torch.tensor([0, 1, 2])
    assert recall_at_precision(10 * torch.eye(3), labels) == 100
    assert recall_at_precision(10 * torch.eye(3).roll(1, 0), labels) == 0
    assert accuracy(torch.eye(3), labels) == 100
    assert accuracy(torch.eye(3), torch.tensor([0, 1, 1])) == pytest.approx(200 / 3)
