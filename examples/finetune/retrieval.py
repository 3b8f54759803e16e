"""Features of a split, and its retrieval metrics in percent.

A query is one image or one caption; right answers are all captions, or images, of its instance.
Recall@K is the paper's: the share of queries with a right answer among the first K. NDCG is over
the whole ranking (`mxm_kernels.retrieval` has both).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mxm_kernels.retrieval import retrieval_metrics

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


def evaluate(images: Tensor, texts: Tensor, data: Observations) -> Metrics:
    """Metrics of both directions, from image features (M, D) and caption features (N, D)."""
    found = retrieval_metrics(
        images, texts, (data.image_ids, data.text_ids), recall_at=RECALL_AT
    )._asdict()
    values = {d: (*(found[d].recall[k] for k in RECALL_AT), found[d].ndcg) for d in DIRECTIONS}
    return {
        direction: {name: 100 * share for name, share in zip(METRICS, shares, strict=True)}
        for direction, shares in values.items()
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
