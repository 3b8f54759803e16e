"""Retrieval metrics: against torchmetrics, against the definition with ties, and in memory."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torchmetrics.retrieval import RetrievalHitRate, RetrievalNormalizedDCG

from mxm_kernels import Folds, retrieval
from mxm_kernels.retrieval import retrieval_metrics
from tests.support.memory import peak_bytes

IMAGE_IDS = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5, 6, 9])  # 9 has no text
TEXT_IDS = torch.arange(7).repeat_interleave(torch.tensor([1, 2, 3, 4, 5, 3, 2]))


def ragged(dtype=torch.float32):
    torch.manual_seed(0)
    centres = torch.randn(10, 6)
    images = normalize(centres[IMAGE_IDS] + 1.5 * torch.randn(14, 6), dim=-1)
    texts = normalize(centres[TEXT_IDS] + 1.5 * torch.randn(20, 6), dim=-1)
    return images.to(dtype), texts.to(dtype), (IMAGE_IDS, TEXT_IDS)


def by_torchmetrics(queries, candidates, query_ids, candidate_ids, ks, ndcg_at=None):
    """R@k and NDCG of torchmetrics; its ranking of ties is not defined for R@k."""
    counted = torch.isin(query_ids, candidate_ids)
    queries, query_ids = queries[counted], query_ids[counted]
    target = query_ids[:, None] == candidate_ids
    # Positives a hair less similar: how a tie counts here.
    scores = (queries.double() @ candidates.double().T - 1e-9 * target).flatten()
    indexes = torch.arange(len(queries)).repeat_interleave(len(candidates))
    recall = {
        k: float(RetrievalHitRate(top_k=k)(scores, target.flatten(), indexes=indexes)) for k in ks
    }
    ndcg = RetrievalNormalizedDCG(top_k=ndcg_at)(scores, target.flatten(), indexes=indexes)
    return recall, float(ndcg), int(counted.sum())


@pytest.mark.parametrize("ndcg_at", [None, 3])
@pytest.mark.parametrize("many", [0, 64])
@pytest.mark.parametrize("workspace_bytes", [1, 400, 64 << 20])
def test_equals_torchmetrics(workspace_bytes, many, ndcg_at, monkeypatch):
    monkeypatch.setattr(retrieval, "_MANY", many)
    monkeypatch.setattr(retrieval, "_BLOCK", 64)
    images, texts, ids = ragged()
    ks = (1, 2, 5, 10, 30)
    got = retrieval_metrics(
        images, texts, ids, recall_at=ks, ndcg_at=ndcg_at, workspace_bytes=workspace_bytes
    )
    wanted = (
        by_torchmetrics(images, texts, *ids, ks, ndcg_at),
        by_torchmetrics(texts, images, *ids[::-1], ks, ndcg_at),
    )
    for metrics, (recall, ndcg, queries) in zip(got, wanted, strict=True):
        assert metrics.recall == pytest.approx(recall, abs=1e-6)
        assert metrics.ndcg == pytest.approx(ndcg, abs=1e-6)
        assert metrics.queries == queries
    assert got.image_to_text.without_positive == 1
    assert got.text_to_image.without_positive == 0
    assert 0 < got.image_to_text.recall[1] < got.image_to_text.recall[10] <= 1


def by_definition(similarities, positive, ks, ndcg_at):
    """The module's docstring, query by query."""
    first, gains = [], []
    for row, right in zip(similarities, positive, strict=True):
        if right.any():
            best = sorted(row[right], reverse=True)
            ranks = [m + 1 + int((row[~right] >= value).sum()) for m, value in enumerate(best)]
            first.append(ranks[0])
            kept = [r for r in ranks if ndcg_at is None or r <= ndcg_at]
            ideal = range(1, min(len(ranks), ndcg_at or len(ranks)) + 1)
            gains.append(
                sum(1 / np.log2(r + 1) for r in kept) / sum(1 / np.log2(r + 1) for r in ideal)
            )
    recall = {k: np.mean([r <= k for r in first]) for k in ks}
    return recall, np.median(first), np.mean(gains), len(first)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=9),
    st.lists(st.integers(0, 4), min_size=1, max_size=9),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, 1, 3]),
)
def test_ties_go_against_the_model(image_ids, text_ids, seed, ndcg_at):
    if not set(image_ids) & set(text_ids):
        return
    rng = np.random.default_rng(seed)
    # Whole numbers: many similarities are exactly equal.
    x, y = rng.integers(-1, 2, (len(image_ids), 2)), rng.integers(-1, 2, (len(text_ids), 2))
    got = retrieval_metrics(
        torch.tensor(x).float(), torch.tensor(y).float(), (image_ids, text_ids), ndcg_at=ndcg_at
    )
    positive = np.equal.outer(image_ids, text_ids)
    for metrics, s, p in ((got[0], x @ y.T, positive), (got[1], y @ x.T, positive.T)):
        recall, median, ndcg, queries = by_definition(s, p, (1, 5, 10), ndcg_at)
        assert metrics.recall == pytest.approx(recall)
        assert (metrics.median_rank, metrics.queries) == (median, queries)
        assert metrics.ndcg == pytest.approx(ndcg)
        assert metrics.queries + metrics.without_positive == len(s)


def test_a_collapsed_encoder_gets_no_credit():
    torch.manual_seed(1)
    one = normalize(torch.randn(100), dim=0)
    got = retrieval_metrics(one.expand(37, -1), one.expand(53, -1), (range(37), range(53)))
    for metrics, negatives in ((got.image_to_text, 52), (got.text_to_image, 36)):
        assert metrics.recall == {1: 0, 5: 0, 10: 0}
        assert metrics.median_rank == negatives + 1
        assert metrics.ndcg == pytest.approx(1 / np.log2(negatives + 2))


def test_a_perfect_encoder_gets_all():
    folds = Folds.uniform(views=3, captions=2)
    images, texts = (torch.eye(4).repeat_interleave(k, 0) for k in (3, 2))
    for metrics in retrieval_metrics(images, texts, folds):
        assert metrics.recall == {1: 1, 5: 1, 10: 1}
        assert (metrics.median_rank, metrics.ndcg, metrics.without_positive) == (1, 1, 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_compared_as_they_are(dtype):
    images, texts, ids = ragged(dtype)
    assert retrieval_metrics(images, texts, ids) == retrieval_metrics(
        images.double(), texts.double(), ids
    )


@pytest.mark.parametrize(("instances", "captions"), [(300, 5), (50, 100)])  # compared, sorted
def test_the_workspace_is_bounded(instances, captions):
    torch.manual_seed(2)
    images, texts = torch.randn(5 * instances, 16), torch.randn(captions * instances, 16)
    workspace = 2 << 20

    def run():
        retrieval_metrics(images, texts, (5, captions), workspace_bytes=workspace)

    run()  # makes the tables of the folds, which are kept
    rows_and_pairs = len(images) + len(texts) + 5 * captions * instances
    bound = workspace + 64 * rows_and_pairs
    assert peak_bytes(run, images.device) < bound < 4 * len(images) * len(texts)


def test_errors_name_the_argument():
    images, texts, ids = ragged()
    with pytest.raises(ValueError, match="text_features must be finite"):
        retrieval_metrics(images, torch.full_like(texts, torch.nan), ids)
    with pytest.raises(ValueError, match="same dimension D"):
        retrieval_metrics(images[:, 1:], texts, ids)
    with pytest.raises(ValueError, match="folds: expected at least one positive pair"):
        retrieval_metrics(images, texts, (IMAGE_IDS + 10, TEXT_IDS))
    with pytest.raises(TypeError, match="recall_at must be a list or tuple of integers, got int 5"):
        retrieval_metrics(images, texts, ids, recall_at=5)
    with pytest.raises(ValueError, match="recall_at must be at least 1, got 0"):
        retrieval_metrics(images, texts, ids, recall_at=(1, 0))
    with pytest.raises(ValueError, match="ndcg_at must be at least 1, got 0"):
        retrieval_metrics(images, texts, ids, ndcg_at=0)
    with pytest.raises(TypeError, match="workspace_bytes must be an integer, got float"):
        retrieval_metrics(images, texts, ids, workspace_bytes=1e3)
