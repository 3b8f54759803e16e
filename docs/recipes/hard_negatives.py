"""Hard negatives: lists of an anchor's own, weights by hardness, captions and counts gone wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus
from typing_extensions import Unpack

from mxm_kernels import Folds, Options, Rows, contrastive_rows, fused_info_nce_loss


# --8<-- [start:listed]
def listed(positives: Tensor, negatives: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """Texts (M + M K, D), positives (M, D) before negatives (M, K, D), and each text's anchor."""
    anchors = torch.arange(first, first + len(positives), device=positives.device)
    owners = anchors.repeat_interleave(negatives.shape[1])
    return torch.cat([positives, negatives.flatten(0, 1)]), torch.cat([anchors, owners])


# --8<-- [end:listed]


# --8<-- [start:own_lists]
Pair = tuple[Tensor, Tensor]


def own_lists(owners: Tensor, anchors: int) -> tuple[Pair, Pair]:
    """Folds and ``within_ids`` of anchors and the texts of ``listed``: each list is its owner's."""
    own, of_negatives = owners[:anchors], owners[anchors:]
    folds = own, torch.cat([own, torch.full_like(of_negatives, -1)])
    return folds, (own, torch.cat([torch.full_like(own, -1), of_negatives]))


# --8<-- [end:own_lists]


# --8<-- [start:own_negatives]
def own_negatives(rows: Rows, image_features: Tensor, negatives: Tensor) -> Rows:
    """The rows with more negatives of the images (M, D): each has its own of (M, K, D)."""
    images, texts = rows.halves(rows.neg_lse)
    scale = rows.logit_scale if rows.logit_scale.ndim == 0 else rows.batch.scales[0][:, None]
    own = (scale * (image_features[:, None] * negatives).sum(2)).logsumexp(1)
    more = torch.cat([torch.full_like(images, negatives.shape[1]), torch.zeros_like(texts)])
    before = 0 if rows.queued_negatives is None else rows.queued_negatives
    joined = torch.cat([torch.logaddexp(images, own.to(images)), texts])
    return replace(rows, neg_lse=joined, queued_negatives=more.detach() + before)


# --8<-- [end:own_negatives]


# --8<-- [start:with_hardness]
def with_hardness(
    image_features: Tensor,
    text_features: Tensor,
    folds: Folds | tuple[Tensor, Tensor],
    *,
    logit_scale: Tensor,
    strength: float,
    **options: Unpack[Options],
) -> Rows:
    """The rows of S + strength sg(c), c the cosines; the positives keep their S alone."""
    scale = logit_scale + strength
    share = logit_scale / scale
    x, y = (f.detach() + share * (f - f.detach()) for f in (image_features, text_features))
    rows = contrastive_rows(x, y, folds, logit_scale=scale, **options)
    bonus = ((1 - share) * rows.positives).detach()
    return replace(rows, positives=rows.positives - bonus)


# --8<-- [end:with_hardness]


# --8<-- [start:ranking]
def ranking(rows: Rows, bonus: float | Tensor = 0.0) -> Tensor:
    """One softmax over a row. All positives but the first are negatives, of S + bonus sg(S)."""
    first = rows.segments.offsets[:-1]
    more = (bonus * rows.positives).detach().index_fill(0, first, 0.0)
    partition = torch.logaddexp(rows.neg_lse, rows.logsumexp(rows.positives + more))
    return rows.mean(partition - rows.positives[first])


# --8<-- [end:ranking]


# --8<-- [start:joint_softmax]
def joint_softmax(rows: Rows, *within: Rows, doc_to_query: bool = True) -> Tensor:
    """One softmax over a row, the row of its positive text, and rows inside a modality."""
    positives = rows.logsumexp(rows.positives)
    queries, docs = rows.halves(torch.logaddexp(rows.neg_lse, positives))
    pairs = rows.halves(positives)[1][: len(queries)]
    parts = [queries, *(w.halves(w.neg_lse)[0] for w in within)]
    parts += [docs[: len(queries)]] if doc_to_query else []
    losses = torch.stack(parts).logsumexp(0) - pairs
    return rows.mean(torch.cat([losses, torch.zeros_like(docs)]))


# --8<-- [end:joint_softmax]


# --8<-- [start:gist]
def guided(a: Pair, b: Pair, threshold: Tensor, folds: Pair, **options: Any) -> Rows:
    """Rows of a against b, each (features, guide's), without b that the guide finds too near."""
    never = torch.full_like(b[1][:, 0], torch.inf, dtype=threshold.dtype)
    options["teacher_image_features"], options["teacher_text_features"] = a[1], b[1]
    options["filter_thresholds"] = threshold, never
    return contrastive_rows(a[0], b[0], folds, image_to_text_weight=1.0, **options)


def gist(
    anchors: Pair, texts: Pair, ids: Tensor, margin: float | Tensor = 0.0, **options: Any
) -> Tensor:
    """GISTEmbedLoss: anchors, ids (M,); texts: their positives, then any number of negatives."""
    n = len(ids)
    threshold = (anchors[1] * texts[1][:n]).sum(1) - margin
    positives, pairs = (texts[0][:n], texts[1][:n]), (ids, ids)
    of_texts = torch.cat([ids, ids.new_full((len(texts[0]) - n,), -1)])
    rows = guided(anchors, texts, threshold, (ids, of_texts), **options)
    within = [guided(own, own, threshold, pairs, **options) for own in (anchors, positives)]
    return joint_softmax(rows, *within, doc_to_query=False)


# --8<-- [end:gist]


# --8<-- [start:negclip]
def negclip(
    image_features: Tensor,
    text_features: Tensor,
    negatives: Tensor,
    ids: Tensor,
    *,
    logit_scale: float | Tensor,
    **options: Unpack[Options],
) -> Tensor:
    """CLIP's loss with K more captions, of no image. ``ids`` (M,) are the pairs' numbers, >= 0."""
    none = ids.new_full((len(negatives),), -1)
    texts, folds = torch.cat([text_features, negatives]), (ids, torch.cat([ids, none]))
    return fused_info_nce_loss(image_features, texts, folds, logit_scale=logit_scale, **options)


# --8<-- [end:negclip]


# --8<-- [start:counting]
def counting(
    image_features: Tensor, text_features: Tensor, false_counts: Tensor, logit_scale: Tensor
) -> Tensor:
    """The term of C images, their captions, and these captions with a false count, (C, D) each."""
    margins = logit_scale * (image_features * (false_counts - text_features)).sum(1)
    return softplus(margins).mean()


# --8<-- [end:counting]
