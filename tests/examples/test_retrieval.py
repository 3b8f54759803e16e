import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from torchmetrics.retrieval import RetrievalHitRate, RetrievalNormalizedDCG

from examples.finetune.data.multifold import Observations
from examples.finetune.retrieval import average, evaluate, metrics_table, retrieval_metrics


@pytest.fixture
def ragged():
    torch.manual_seed(0)
    query_ids = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5, 6])
    answer_ids = torch.arange(7).repeat_interleave(torch.tensor([1, 2, 3, 4, 5, 3, 2]))
    centres = torch.randn(7, 6)
    queries = normalize(centres[query_ids] + 1.5 * torch.randn(13, 6), dim=-1)
    answers = normalize(centres[answer_ids] + 1.5 * torch.randn(20, 6), dim=-1)
    return queries, answers, query_ids, answer_ids


def test_metrics_match_a_brute_force_computation(ragged):
    queries, answers, query_ids, answer_ids = (t.numpy() for t in ragged)
    hits, gains = {1: [], 5: [], 10: []}, []
    for query, instance in zip(queries, query_ids, strict=True):
        right = (answer_ids == instance)[np.argsort(-(answers @ query))]
        for k, values in hits.items():
            values.append(right[:k].any())
        discounts = 1 / np.log2(np.arange(len(right)) + 2)
        gains.append((right * discounts).sum() / discounts[: right.sum()].sum())
    got = retrieval_metrics(*ragged)
    for k, values in hits.items():
        assert got[f"R@{k}"] == pytest.approx(100 * np.mean(values))
    assert got["NDCG"] == pytest.approx(100 * np.mean(gains), abs=1e-3)
    assert 0 < got["R@1"] < got["R@5"] < got["R@10"] <= 100


def test_functional_forms_equal_the_class_forms(ragged):
    queries, answers, query_ids, answer_ids = ragged
    scores = (queries @ answers.T).flatten()
    target = (query_ids[:, None] == answer_ids).flatten()
    indexes = torch.arange(len(queries)).repeat_interleave(len(answers))
    got = retrieval_metrics(*ragged)
    for k in (1, 5, 10):
        want = RetrievalHitRate(top_k=k)(scores, target, indexes=indexes)
        assert got[f"R@{k}"] == pytest.approx(100 * float(want), abs=1e-4)
    want = RetrievalNormalizedDCG()(scores, target, indexes=indexes)
    assert got["NDCG"] == pytest.approx(100 * float(want), abs=1e-3)


def test_both_directions_average_and_table(ragged):
    texts, images, text_ids, image_ids = ragged
    data = Observations([], [], image_ids, text_ids)
    metrics = evaluate(images, texts, data)
    assert metrics["text_to_image"] == retrieval_metrics(texts, images, text_ids, image_ids)
    assert metrics["image_to_text"] == retrieval_metrics(images, texts, image_ids, text_ids)
    recalls = [v for m in metrics.values() for name, v in m.items() if name != "NDCG"]
    assert average(metrics) == pytest.approx(np.mean(recalls))
    perfect = evaluate(torch.eye(3), torch.eye(3), Observations([], [], *[torch.arange(3)] * 2))
    assert average(perfect) == 100
    assert "| 100.00 | 100.00 | 100.00 | 100.00 |" in metrics_table(metrics, perfect)
