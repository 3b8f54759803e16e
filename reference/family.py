"""The family of contrastive losses, dense, in float64: each from its own paper's definition.

Every function takes one direction and returns a loss for each row. S (rows, columns) are the
similarities, ``positives`` and ``negatives`` boolean matrices of the same shape (a column that
is neither, such as a queue's row of the same instance, takes no part), ``weights`` a matrix
that is 0 outside the positives and says how much each of them counts. A row without a positive
has loss 0. Written to be read; shares no code with mxm_kernels.
"""

from __future__ import annotations

import torch
from einops import einsum, reduce
from torch import Tensor


def paired(positives: Tensor) -> Tensor:
    """One positive for each row: the k-th row of an instance takes its (k mod count)-th column."""
    chosen = torch.zeros_like(positives)
    for i, row in enumerate(positives):
        columns = torch.nonzero(row).flatten()
        if len(columns):
            rank = int((positives[:i, columns[0]]).sum())  # earlier rows of the instance
            chosen[i, columns[rank % len(columns)]] = True
    return chosen.double()


def alike(positives: Tensor) -> Tensor:
    """Every positive of a row weighs the same, together 1."""
    counts = reduce(positives.double(), "row column -> row 1", "sum").clamp(min=1)
    return positives.double() / counts


def cross_entropy(logits: Tensor, target: int, smoothing: float) -> Tensor:
    """-sum_j t_j log softmax_j with t = (1 - e) onehot + e uniform."""
    log_p = torch.log_softmax(logits, dim=0)
    return -(1 - smoothing) * log_p[target] - smoothing * log_p.mean()


def info_nce(
    S: Tensor,
    positives: Tensor,
    negatives: Tensor,
    weights: Tensor,
    smoothing: float = 0.0,
    *,
    masked: bool,
) -> Tensor:
    """InfoNCE of every weighted positive, the other positives masked out or left in."""
    losses = []
    for i in range(S.shape[0]):
        loss = S[i].sum() * 0
        for k in torch.nonzero(positives[i]).flatten():
            kept = negatives[i] | (torch.zeros_like(positives[i]) if masked else positives[i])
            kept = kept.index_fill(0, k, True)
            target = int(kept[:k].sum())
            loss = loss + weights[i, k] * cross_entropy(S[i][kept], target, smoothing)
        losses.append(loss)
    return torch.stack(losses)


def supcon_in(
    S: Tensor, positives: Tensor, negatives: Tensor, weights: Tensor, smoothing: float = 0.0
) -> Tensor:
    """-log of the share that all positives together have in the softmax (equation 3)."""
    losses = []
    for i in range(S.shape[0]):
        if not positives[i].any():
            losses.append(S[i].sum() * 0)
            continue
        kept = positives[i] | negatives[i]
        top = torch.logsumexp(S[i][positives[i]], dim=0)
        loss = torch.logsumexp(S[i][kept], dim=0) - top
        losses.append(loss + smoothing * (top - S[i][kept].mean()))
    return torch.stack(losses)


def decoupled(
    S: Tensor, positives: Tensor, negatives: Tensor, weights: Tensor, smoothing: float = 0.0
) -> Tensor:
    """DCL, equation 6: the denominator holds negatives only; 0 without one."""
    losses = []
    for i in range(S.shape[0]):
        loss = S[i].sum() * 0
        if negatives[i].any():
            below = torch.logsumexp(S[i][negatives[i]], dim=0)
            for k in torch.nonzero(positives[i]).flatten():
                target = (1 - smoothing) * S[i, k] + smoothing * S[i][negatives[i]].mean()
                loss = loss + weights[i, k] * (below - target)
        losses.append(loss)
    return torch.stack(losses)


def debiased(
    S: Tensor,
    positives: Tensor,
    negatives: Tensor,
    weights: Tensor,
    smoothing: float = 0.0,
    *,
    scale: Tensor,
    prior: float,
) -> Tensor:
    """Debiased contrastive loss, equation 8, with N g in place of the sum over negatives."""
    losses = []
    for i in range(S.shape[0]):
        loss = S[i].sum() * 0
        s = scale if scale.ndim == 0 else scale[i]
        if negatives[i].any() and positives[i].any():
            N = int(negatives[i].sum())
            expected = S[i][negatives[i]].exp().mean() - prior * S[i][positives[i]].exp().mean()
            g = torch.maximum(expected / (1 - prior), torch.exp(-s))
            for k in torch.nonzero(positives[i]).flatten():
                one = torch.log(S[i, k].exp() + N * g) - S[i, k]
                kept = negatives[i].index_fill(0, k, True)
                one = one + smoothing * (S[i, k] - S[i][kept].mean())
                loss = loss + weights[i, k] * one
        losses.append(loss)
    return torch.stack(losses)


def continuously_weighted(S: Tensor, similarity: Tensor) -> Tensor:
    """CWCL: -sum_j w_ij log softmax_ij / sum_j w_ij with w = (1 + similarity) / 2."""
    w = (1 + similarity) / 2
    weighted = einsum(w, torch.log_softmax(S, dim=1), "row column, row column -> row")
    return -weighted / reduce(w, "row column -> row", "sum")


def soft(S: Tensor, T: Tensor, kept: Tensor) -> Tensor:
    """Cross-entropy of softmax(S) against softmax(T), both over the kept columns of a row."""
    losses = []
    for s, t, columns in zip(S, T, kept, strict=True):
        targets = torch.softmax(t[columns], dim=0)
        losses.append(-(targets * torch.log_softmax(s[columns], dim=0)).sum())
    return torch.stack(losses)


def mean(losses: Tensor, counted: Tensor, row_weights: Tensor | None) -> Tensor:
    """Mean over the counted rows, or their weighted mean."""
    w = counted.to(losses) if row_weights is None else row_weights * counted
    return (w * losses).sum() / w.sum()
