import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_normalized_dcg

from examples.data.multifold import Observations
from examples.finetune.retrieval import average, evaluate, metrics_table, title_of


@pytest.fixture
def ragged():
    torch.manual_seed(0)
    text_ids = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5, 6])
    image_ids = torch.arange(7).repeat_interleave(torch.tensor([1, 2, 3, 4, 5, 3, 2]))
    centres = torch.randn(7, 6)
    texts = normalize(centres[text_ids] + 1.5 * torch.randn(13, 6), dim=-1)
    images = normalize(centres[image_ids] + 1.5 * torch.randn(20, 6), dim=-1)
    return images, texts, Observations([], [], image_ids, text_ids)


def test_percentages_of_both_directions(ragged):
    images, texts, data = ragged
    metrics = evaluate(*ragged)
    similarities, positive = texts @ images.T, data.text_ids[:, None] == data.image_ids
    for direction, s, p in (
        ("text_to_image", similarities, positive),
        ("image_to_text", similarities.T, positive.T),
    ):
        for k in (1, 5, 10):
            hits = [retrieval_hit_rate(a, b, top_k=k) for a, b in zip(s, p, strict=True)]
            assert metrics[direction][f"R@{k}"] == pytest.approx(100 * np.mean(hits))
        gains = [retrieval_normalized_dcg(a, b) for a, b in zip(s, p, strict=True)]
        assert metrics[direction]["NDCG"] == pytest.approx(100 * np.mean(gains), abs=1e-3)


def mean_rows(features, ids):
    """One row for each instance, and their ids."""
    present = ids.unique()
    means = torch.stack([features[ids == i].mean(0) for i in present])
    return normalize(means, dim=-1), present


@pytest.mark.parametrize("aggregate", ["images", "texts", "both"])
def test_aggregated_retrieval_is_that_of_the_mean_features(ragged, aggregate):
    images, texts, data = ragged
    got = evaluate(*ragged, aggregate)
    (x, image_ids), (y, text_ids) = (images, data.image_ids), (texts, data.text_ids)
    if aggregate != "texts":
        x, image_ids = mean_rows(x, image_ids)
    if aggregate != "images":
        y, text_ids = mean_rows(y, text_ids)
    similarities, positive = y @ x.T, text_ids[:, None] == image_ids
    for direction, s, p in (
        ("text_to_image", similarities, positive),
        ("image_to_text", similarities.T, positive.T),
    ):
        hits = [retrieval_hit_rate(a, b, top_k=1) for a, b in zip(s, p, strict=True)]
        assert got[direction]["R@1"] == pytest.approx(100 * np.mean(hits))
        gains = [retrieval_normalized_dcg(a, b) for a, b in zip(s, p, strict=True)]
        assert got[direction]["NDCG"] == pytest.approx(100 * np.mean(gains), abs=1e-3)
    assert got != evaluate(*ragged)


def test_titles_name_the_side_that_is_aggregated():
    titles = {
        "none": ("text to image", "image to text"),
        "images": ("text to mean image", "mean image to text"),
        "texts": ("mean text to image", "image to mean text"),
        "both": ("mean text to mean image", "mean image to mean text"),
    }
    for aggregate, (there, back) in titles.items():
        assert title_of("text_to_image", aggregate) == there
        assert title_of("image_to_text", aggregate) == back


def test_average_and_table(ragged):
    metrics = evaluate(*ragged)
    recalls = [v for m in metrics.values() for name, v in m.items() if name != "NDCG"]
    assert average(metrics) == pytest.approx(np.mean(recalls))
    perfect = evaluate(torch.eye(3), torch.eye(3), Observations([], [], *[torch.arange(3)] * 2))
    assert average(perfect) == 100
    assert "| 100.00 | 100.00 | 100.00 | 100.00 |" in metrics_table(metrics, perfect)
    assert "| mean text to image | before |" in metrics_table(metrics, perfect, "texts")
