"""Retrieval metrics over ragged positives, by torchmetrics.

A query is one image or one caption; right answers are all captions, or images, of its instance.
Recall@K is the paper's: the share of queries with a right answer among the first K, which
torchmetrics calls the hit rate. NDCG is over the whole ranking. The functional forms are applied
query by query: the class forms sort the concatenation of all queries' similarities first, which
for COCO are 10^8 numbers.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_normalized_dcg

from .data.multifold import Observations, pad_texts
from .dual_encoder import DualEncoder

CHUNK = 256
RECALL_AT = (1, 5, 10)
METRICS = (*(f"R@{k}" for k in RECALL_AT), "NDCG")
DIRECTIONS = ("text_to_image", "image_to_text")

Metrics = dict[str, dict[str, float]]


@torch.no_grad()
def encode(model: DualEncoder, data: Observations, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features of a split: images (M, D) and captions (N, D), on the CPU."""
    training = model.training
    model.eval()
    images = [
        model.encode_images(torch.stack(chunk).to(device)).cpu() for chunk in chunks(data.images)
    ]
    texts = []
    for chunk in chunks(data.texts):
        padded, lengths = pad_texts(chunk)
        texts.append(model.encode_texts(padded.to(device), lengths.to(device)).cpu())
    model.train(training)
    return torch.cat(images), torch.cat(texts)


def chunks(items: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive pieces of a sequence; images are decoded as their piece is reached."""
    for start in range(0, len(items), CHUNK):
        yield [items[i] for i in range(start, min(start + CHUNK, len(items)))]


def retrieval_metrics(
    queries: Tensor, answers: Tensor, query_ids: Tensor, answer_ids: Tensor
) -> dict[str, float]:
    """Recall@K and NDCG, in percent.

    Args:
        queries: features (Q, D).
        answers: features (A, D).
        query_ids: instance of each query (Q,).
        answer_ids: instance of each answer (A,).

    """
    rows = []
    for query, instance in zip(queries, query_ids, strict=True):
        similarity, relevant = answers @ query, answer_ids == instance
        recalls = [retrieval_hit_rate(similarity, relevant, top_k=k) for k in RECALL_AT]
        rows.append(torch.stack([*recalls, retrieval_normalized_dcg(similarity, relevant)]))
    means = 100 * torch.stack(rows).double().mean(0)
    return dict(zip(METRICS, means.tolist(), strict=True))


def evaluate(images: Tensor, texts: Tensor, data: Observations) -> Metrics:
    """Metrics of both directions, from image features (M, D) and caption features (N, D)."""
    return {
        "text_to_image": retrieval_metrics(texts, images, data.text_ids, data.image_ids),
        "image_to_text": retrieval_metrics(images, texts, data.image_ids, data.text_ids),
    }


def average(metrics: Metrics) -> float:
    """Mean of Recall@1, @5 and @10 over both directions."""
    values = [metrics[d][f"R@{k}"] for d in DIRECTIONS for k in RECALL_AT]
    return sum(values) / len(values)


def metrics_table(before: Metrics, after: Metrics) -> str:
    """Markdown table of the metrics before and after training."""
    lines = ["| direction | | " + " | ".join(METRICS) + " |", "|---|---|" + "---:|" * len(METRICS)]
    for direction in DIRECTIONS:
        for when, metrics in (("before", before), ("after", after)):
            numbers = " | ".join(f"{metrics[direction][name]:.2f}" for name in METRICS)
            lines.append(f"| {direction.replace('_', ' ')} | {when} | {numbers} |")
    return "\n".join(lines)
