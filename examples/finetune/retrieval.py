"""Retrieval metrics of a split, in percent.

A query is one image or one caption; right answers are all captions, or images, of its instance.
Recall@K is the paper's: the share of queries with a right answer among the first K. NDCG is over
the whole ranking (`mxm_kernels.retrieval` has both).

With an aggregated side, an instance has one feature there: the mean of the features of its images,
or of its captions. The paper retrieves so on Text2Shape (images in its Tables 1 and 3, texts in
Table 4).
"""

from torch import Tensor

from mxm_kernels.retrieval import retrieval_metrics

from ..data.multifold import Aggregate, Observations, aggregated

RECALL_AT = (1, 5, 10)
METRICS = (*(f"R@{k}" for k in RECALL_AT), "NDCG")
DIRECTIONS = ("text_to_image", "image_to_text")
Metrics = dict[str, dict[str, float]]


def evaluate(
    images: Tensor, texts: Tensor, data: Observations, aggregate: Aggregate = "none"
) -> Metrics:
    """Metrics of both directions, from image features (M, D) and caption features (N, D)."""
    x, y, *ids = aggregated(aggregate, images, texts, data.image_ids, data.text_ids)
    found = retrieval_metrics(x, y, (ids[0], ids[1]), recall_at=RECALL_AT)._asdict()
    shares = {d: (*(found[d].recall[k] for k in RECALL_AT), found[d].ndcg) for d in DIRECTIONS}
    return {d: {m: 100 * s for m, s in zip(METRICS, shares[d], strict=True)} for d in DIRECTIONS}


def average(metrics: Metrics) -> float:
    """Mean of Recall@1, @5 and @10 over both directions."""
    values = [metrics[d][f"R@{k}"] for d in DIRECTIONS for k in RECALL_AT]
    return sum(values) / len(values)


def title_of(direction: str, aggregate: Aggregate = "none") -> str:
    """Words for a direction, such as "text to mean image"."""
    words = {"image": aggregate in ("images", "both"), "text": aggregate in ("texts", "both")}
    return " ".join(f"mean {w}" if words.get(w) else w for w in direction.split("_"))


def metrics_table(before: Metrics, after: Metrics, aggregate: Aggregate = "none") -> str:
    """Markdown table of the metrics before and after training."""
    lines = ["| direction | | " + " | ".join(METRICS) + " |", "|---|---|" + "---:|" * len(METRICS)]
    for direction in DIRECTIONS:
        for when, metrics in (("before", before), ("after", after)):
            numbers = " | ".join(f"{metrics[direction][name]:.2f}" for name in METRICS)
            lines.append(f"| {title_of(direction, aggregate)} | {when} | {numbers} |")
    return "\n".join(lines)
