"""Hard negatives: lists of an anchor's own, weights by hardness, captions and counts gone wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mxm_kernels import Rows, contrastive_rows, fused_info_nce_loss


# --8<-- [start:listed]
def listed(positives: Tensor, negatives: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
    """Texts (M + M K, D), positives (M, D) before negatives (M, K, D), and each text's anchor."""
    anchors = torch.arange(first, first + len(positives), device=positives.device)
    owners = anchors.repeat_interleave(negatives.shape[1])
    return torch.cat([positives, negatives.flatten(0, 1)]), torch.cat([anchors, owners])


# --8<-- [end:listed]


# --8<-- [start:own_negatives]
def own_negatives(rows: Rows, anchors: Tensor, negatives: Tensor) -> Rows:
    """The rows with negatives that one image each has: (M, K, D), of the anchors (M, D)."""
    images, texts = rows.halves(rows.neg_lse)
    scale = rows.logit_scale if rows.logit_scale.ndim == 0 else rows.batch.scales[0][:, None]
    own = (scale * (anchors[:, None] * negatives).sum(2)).logsumexp(1)
    more = torch.cat([torch.full_like(images, negatives.shape[1]), torch.zeros_like(texts)])
    before = 0 if rows.queued_negatives is None else rows.queued_negatives
    joined = torch.cat([torch.logaddexp(images, own.to(images)), texts])
    return replace(rows, neg_lse=joined, queued_negatives=more.detach() + before)


# --8<-- [end:own_negatives]


# --8<-- [start:with_hardness]
def with_hardness(x: Tensor, y: Tensor, folds: Any, s: Tensor, h: float, **options: Any) -> Rows:
    """The rows of S + h sg(c), c the cosines; of the positives it is S that is in the list."""
    share = (s / (s + h)).detach()
    x, y = (f.detach() + share * (f - f.detach()) for f in (x, y))  # a smaller gradient
    rows = contrastive_rows(x, y, folds, logit_scale=s + h, **options)
    return replace(rows, positives=rows.positives - ((1 - share) * rows.positives).detach())


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


# --8<-- [start:negclip]
def negclip(
    images: Tensor, captions: Tensor, negatives: Tensor, ids: Tensor, **options: Any
) -> Tensor:
    """CLIP's loss with more captions (K, D) that show no image; ids (M,) are those of the pairs."""
    none = ids.new_full((len(negatives),), -1)  # an id that no image has
    texts, folds = torch.cat([captions, negatives]), (ids, torch.cat([ids, none]))
    return fused_info_nce_loss(images, texts, folds, **options)


# --8<-- [end:negclip]


# --8<-- [start:counting]
def counting(images: Tensor, captions: Tensor, false: Tensor, scale: float | Tensor) -> Tensor:
    """C images, their captions and the same captions with a false count, (C, D) each."""
    return softplus(scale * (images * (false - captions)).sum(1)).mean()


# --8<-- [end:counting]
