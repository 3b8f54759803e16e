"""Retrieval metrics of multifold data, in bounded memory: recall, median rank and NDCG.

A query is one image or one text. Its right answers, or positives, are all texts, or images, of its
instance. With the positives of a query sorted by similarity, best first, the m-th of them has

    rank_m = m + (number of negatives at least as similar as it)           m = 1, 2, ...

**Ties go against the model**: a negative that is exactly as similar as a positive is ranked before
it. Features that are all alike have recall 0. The metrics are

    R@k     = share of queries with rank_1 <= k
    NDCG    = sum_m 1 / log2(rank_m + 1)  over  sum_{m=1..number of positives} 1 / log2(m + 1)

(Järvelin and Kekäläinen, 2002). The sums of NDCG@k are over the ranks up to k. Queries without a
right answer are left out of the metrics and counted.

Similarities are computed for some queries at a time, and a rank is found by counting, not by
sorting. Memory beside the features is ``workspace_bytes`` and O(M + N + P) for P positive pairs.
`bench/results/retrieval.json` has time and peak memory for 31,000 images and 155,000 texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mxm_kernels import checks
from mxm_kernels.core.batch import resolve_folds
from mxm_kernels.core.options import FoldsLike

__all__ = ["Retrieval", "RetrievalMetrics", "retrieval_metrics"]

_BLOCK = 1 << 18  # comparisons at a time: they stay in a CPU's cache
_MANY = 64  # positives of a query from which sorting its negatives is cheaper than comparing


@dataclass(frozen=True)
class RetrievalMetrics:
    """Metrics of one direction; shares are between 0 and 1."""

    recall: dict[int, float]  # k -> R@k
    median_rank: float  # median of rank_1, the mean of the middle two for an even number
    ndcg: float
    queries: int  # with a right answer: those that the metrics are means over
    without_positive: int  # queries without a right answer, which are left out


class Retrieval(NamedTuple):
    """Metrics of both directions. The first word of a name says what the queries are."""

    image_to_text: RetrievalMetrics
    text_to_image: RetrievalMetrics


torch.serialization.add_safe_globals([Retrieval, RetrievalMetrics])  # numbers


@torch.inference_mode()
def retrieval_metrics(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike,
    *,
    recall_at: Sequence[int] = (1, 5, 10),
    ndcg_at: int | None = None,
    workspace_bytes: int = 64 << 20,
) -> Retrieval:
    """Recall at k, median rank and NDCG of image-to-text and text-to-image retrieval.

    Args:
        image_features: (M, D), compared by inner product; normalise them for cosines. Any
            floating-point dtype and device. 16-bit features are widened to float32 first.
        text_features: (N, D), same dtype and device.
        folds: which rows show the same instance, as in :func:`mxm_kernels.fused_mfh_loss`.
        recall_at: the k of R@k, at least 1 each.
        ndcg_at: the k of NDCG@k; None takes the whole ranking.
        workspace_bytes: bytes that the similarities in memory, and what is computed from them, may
            take. One query is always taken.

    Returns:
        A :class:`Retrieval`: the metrics with images as queries and with texts as queries.

    Raises:
        TypeError, ValueError: an argument is not as described; features that are not finite; no
            positive pair.

    Example:
        >>> import torch
        >>> from mxm_kernels.retrieval import retrieval_metrics
        >>> images = torch.eye(3)
        >>> texts = torch.tensor([[1.0, 0.2, 0.0], [0.5, 0.4, 0.0], [0.0, 0.1, 1.0], [1.0, 0, 0]])
        >>> result = retrieval_metrics(images, texts, ([0, 1, 2], [0, 1, 2, 7]), recall_at=(1, 2))
        >>> result.text_to_image.recall, result.text_to_image.without_positive
        ({1: 0.6666666666666666, 2: 1.0}, 1)
        >>> result.image_to_text.median_rank  # of ranks 2, 1 and 1: a text of no image tied
        1.0
    """
    checks.check_features(image_features, text_features)
    for name, features in (("image_features", image_features), ("text_features", text_features)):
        # The extremes need no memory of the features' size, as a mask would.
        if not bool(torch.stack(torch.aminmax(features)).isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinite entries")
    if not isinstance(recall_at, Sequence) or not recall_at:
        raise TypeError(
            f"recall_at must be a list or tuple of integers, got {type(recall_at).__name__} "
            f"{recall_at!r}"
        )
    for k in recall_at:
        checks.as_count("recall_at", k)
    if ndcg_at is not None:
        checks.as_count("ndcg_at", ndcg_at)
    checks.as_count("workspace_bytes", workspace_bytes)
    t = resolve_folds(folds, image_features, text_features)
    dtype = torch.float64 if image_features.dtype == torch.float64 else torch.float32
    x, y = image_features.to(dtype), text_features.to(dtype)
    directions = (
        _Queries(x, y, t.offsets[: t.images + 1], t.pair_texts),
        _Queries(y, x, t.offsets[t.images :] - t.pairs, t.pair_images[t.text_slots]),
    )
    return Retrieval(*(_metrics(d, recall_at, ndcg_at, workspace_bytes) for d in directions))


class _Queries(NamedTuple):
    """Queries of one direction, the candidates that they rank, and their right answers."""

    queries: Tensor  # (Q, D)
    candidates: Tensor  # (A, D)
    offsets: Tensor  # (Q + 1,) query i owns answers[offsets[i] : offsets[i + 1]]
    answers: Tensor  # (P,) rows of candidates


def _metrics(
    direction: _Queries, recall_at: Sequence[int], ndcg_at: int | None, workspace_bytes: int
) -> RetrievalMetrics:
    first, gains = _ranks_and_gains(direction, ndcg_at, workspace_bytes)
    answered = first > 0
    first = first[answered]
    return RetrievalMetrics(
        recall={int(k): float(np.mean(first <= k)) for k in recall_at},
        median_rank=float(np.median(first)),
        ndcg=float(np.mean(gains[answered])),
        queries=len(first),
        without_positive=int((~answered).sum()),
    )


def _ranks_and_gains(
    direction: _Queries, ndcg_at: int | None, workspace_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """rank_1 (Q,), 0 without a right answer, and NDCG (Q,) of every query."""
    queries, candidates, offsets, _ = direction
    counts = offsets.diff()
    ideal = _discounts(torch.arange(int(counts.max()) + 1, device=counts.device), ndcg_at).cumsum(0)
    rows = _slab_rows(len(candidates), int(counts.max()), queries.element_size(), workspace_bytes)
    slab = torch.empty(rows * len(candidates), dtype=queries.dtype, device=queries.device)
    first = torch.zeros_like(counts)
    gains = torch.zeros(len(queries), dtype=torch.float64, device=queries.device)
    for start in range(0, len(queries), rows):
        chunk = slice(start, min(start + rows, len(queries)))
        if not bool(counts[chunk].any()):
            continue
        ranks = _ranks(direction, chunk, slab)
        first[chunk] = ranks[:, 0]
        gains[chunk] = _discounts(ranks, ndcg_at).sum(1) / ideal[counts[chunk]]
    return first.cpu().numpy(), gains.cpu().numpy()


def _slab_rows(candidates: int, most_positives: int, itemsize: int, workspace_bytes: int) -> int:
    """Queries of a slab: their similarities, or these with a sorted copy and its permutation."""
    entry = itemsize if most_positives <= _MANY else 2 * itemsize + 8
    scratch = itemsize * _BLOCK if most_positives <= _MANY else 0
    return max((workspace_bytes - scratch) // (entry * candidates), 1)


def _discounts(ranks: Tensor, ndcg_at: int | None) -> Tensor:
    """1 / log2(rank + 1) in float64; 0 for rank 0, which stands for none, and beyond ndcg_at."""
    values = 1 / (ranks.double() + 1).log2()
    beyond = torch.zeros_like(ranks, dtype=torch.bool) if ndcg_at is None else ranks > ndcg_at
    return values.masked_fill((ranks < 1) | beyond, 0)


def _ranks(direction: _Queries, chunk: slice, slab: Tensor) -> Tensor:
    """Ranks of the right answers of some queries, best first: (rows, K), 0 beyond their number."""
    offsets = direction.offsets[chunk.start : chunk.stop + 1]
    answers = direction.answers[offsets[0] : offsets[-1]]  # (P,) of this chunk
    counts = offsets.diff()
    owners = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    lanes = torch.arange(len(answers), device=counts.device) - (offsets - offsets[0])[owners]

    candidates = len(direction.candidates)
    similarities = slab[: len(counts) * candidates].view(len(counts), candidates)
    torch.mm(direction.queries[chunk], direction.candidates.T, out=similarities)
    # The positives' similarities are taken from the slab, so that equal features tie exactly.
    positives = slab.new_full((len(counts), int(counts.max())), -torch.inf)
    positives[owners, lanes] = similarities[owners, answers]
    positives = positives.sort(1, descending=True).values
    similarities[owners, answers] = -torch.inf

    numbers = torch.arange(1, positives.shape[1] + 1, device=counts.device)
    ranks = numbers + _count_as_similar(similarities, positives)
    return ranks.masked_fill(numbers > counts[:, None], 0)


def _count_as_similar(similarities: Tensor, positives: Tensor) -> Tensor:
    """How many entries of each row are at least as large as each of its positives: (rows, K)."""
    rows, candidates = similarities.shape
    if positives.shape[1] > _MANY:
        return candidates - torch.searchsorted(similarities.sort(1).values, positives)
    counts = torch.zeros_like(positives, dtype=torch.int64)
    width = min(_BLOCK // positives.shape[1], candidates)
    height = min(max(_BLOCK // (positives.shape[1] * width), 1), rows)
    # Floats are summed several times as fast as booleans; below 2**24 ones the sum is exact.
    scratch = similarities.new_empty(height, positives.shape[1], width)
    for row in range(0, rows, height):
        for column in range(0, candidates, width):
            block = similarities[row : row + height, None, column : column + width]
            larger = scratch[: block.shape[0], :, : block.shape[2]]
            torch.ge(block, positives[row : row + height, :, None], out=larger)
            counts[row : row + height] += larger.sum(2).long()
    return counts
