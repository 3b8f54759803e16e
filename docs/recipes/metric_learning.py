"""Losses of metric learning and of self-supervised learning, over the list of rows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import softplus
from typing_extensions import Unpack

from mxm_kernels import Options, Rows, contrastive_rows


# --8<-- [start:alignment]
def alignment(rows: Rows) -> Tensor:
    """Mean over the rows of the mean of |x - y|^2 over the positives of the row."""
    distances = 2 - 2 * rows.positives / rows.logit_scale
    return rows.mean(rows.sum(distances) / rows.counts.clamp(min=1))


# --8<-- [end:alignment]


# --8<-- [start:uniformity]
def uniformity(rows: Rows) -> Tensor:
    """Log of the mean of exp(-t |x - x'|^2) over the negative pairs, with t = logit_scale / 2."""
    potential = (rows.neg_lse - rows.logit_scale).exp() / rows.num_negatives.clamp(min=1)
    return rows.mean(potential, of_every_row=True).log()


# --8<-- [end:uniformity]


# --8<-- [start:multi_similarity]
def multi_similarity(rows: Rows, alpha: float = 2.0, base: float = 0.5) -> Tensor:
    """Multi-Similarity loss: each row has a term for its positives and one for its negatives."""
    beta = rows.logit_scale
    pull = rows.logsumexp(alpha * (base - rows.positives / beta))
    push = rows.neg_lse - beta * base
    return rows.mean(softplus(pull) / alpha + softplus(push) / beta, of_every_row=True)


# --8<-- [end:multi_similarity]


# --8<-- [start:without_itself]
def without_itself(rows: Rows, ids: Tensor) -> Rows:
    """The rows of features with themselves, ids (M,): no row is a positive of itself."""
    first, second = (ids[:, None] == ids).nonzero().T
    others, segments = (first != second).repeat(2), rows.segments
    offsets = segments.offsets - torch.arange(len(segments.offsets), device=ids.device)
    kept = segments._replace(offsets=offsets, owners=segments.owners[others])
    return replace(rows, positives=rows.positives[others], segments=kept)


# --8<-- [end:without_itself]


# --8<-- [start:mlcd]
def mlcd(
    image_features: Tensor,
    centres: Tensor,
    labels: Tensor,
    *,
    logit_scale: float | Tensor,
    **options: Unpack[Options],
) -> Tensor:
    """MLCD: ``labels`` (M, k) are the rows of ``centres`` (N, D) that each image belongs to."""
    used, places = labels.unique(return_inverse=True)
    ids = torch.zeros_like(labels[:, 0]), labels.new_ones(len(centres)).index_fill(0, used, 0)
    options["image_to_text_weight"] = 1.0
    rows = contrastive_rows(image_features, centres, ids, logit_scale=logit_scale, **options)
    block = rows.positives[: len(labels) * len(used)].view(len(labels), -1)  # images, used centres
    own = torch.zeros_like(block).scatter(1, places, 1.0) > 0
    (negatives, others), none = rows.halves(rows.neg_lse), -torch.inf
    negatives = torch.logaddexp(negatives, block.masked_fill(own, none).logsumexp(1))
    losses = softplus(negatives) + softplus((-block).masked_fill(~own, none).logsumexp(1))
    return rows.mean(torch.cat([losses, torch.zeros_like(others)]))


# --8<-- [end:mlcd]


# --8<-- [start:two_views]
def two_views(
    view: Tensor, other: Tensor, *, logit_scale: float | Tensor, **options: Unpack[Options]
) -> Rows:
    """The rows of two views of M images. The other images' rows of both views are negatives."""
    rows = contrastive_rows(view, other, (1, 1), logit_scale=logit_scale, **options)
    own = [
        contrastive_rows(v, v, (1, 1), logit_scale=logit_scale, **options) for v in (view, other)
    ]
    within = torch.cat([o.halves(o.neg_lse)[0] for o in own])
    joined = torch.logaddexp(rows.neg_lse, within)
    return replace(rows, neg_lse=joined, queued_negatives=rows.num_negatives)


# --8<-- [end:two_views]


# --8<-- [start:dclw]
def dclw(rows: Rows, sigma: float = 0.5) -> Tensor:
    """DCL with weights w = 2 - exp(c / sigma) / mean exp(c / sigma), c the pairs' similarities."""
    similarities = (rows.positives / rows.logit_scale).detach().view(2, -1)
    shares = (similarities / sigma).softmax(1)
    weights = 2 - shares.shape[1] * shares
    return rows.mean(rows.neg_lse - weights.view(-1) * rows.positives)


# --8<-- [end:dclw]
