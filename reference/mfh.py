"""The MFH loss of MXM-CLR, equation by equation, dense, in float64.

Written from the paper's definitions (arXiv 2303.10839, section 3.2 and figures 4 and 5) to be
read and trusted, not to be fast: it builds the similarity matrix, the group matrix, a mask for
every round, and lets autograd differentiate all of it. It shares no code with mxm_kernels.

Symbols: x (M, D) and y (N, D) are the L2-normalised image and text features, S = s x y^T the
temperature-controlled similarities with s = 1 / temperature, T the teacher's. Row i of the
group matrix holds True where text j shows the same instance as image i.

Two points that the paper leaves open are fixed here: the hard loss is averaged over the rows
that have a positive, and a row whose denominator is its positive alone has loss zero.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange, reduce
from torch import Tensor


def similarity(x: Tensor, y: Tensor, scale: Tensor | float) -> Tensor:
    """Temperature-controlled cosine similarity of every image with every text, (M, N)."""
    return scale * (x @ y.T)


def group_matrix(image_ids: Tensor, text_ids: Tensor) -> Tensor:
    """Equation 4: True where image i and text j observe the same instance, (M, N)."""
    return rearrange(image_ids, "m -> m 1") == rearrange(text_ids, "n -> 1 n")


def masked_info_nce(S: Tensor, positives: Tensor, selected: Tensor) -> Tensor:
    """One round of equation 6: -log of the softmax of the selected pair, per row, (M,).

    The unselected positives of a row are masked out of its denominator. Rows without a
    positive have ``selected`` -1 and loss 0.
    """
    losses = []
    for i in range(S.shape[0]):
        k = int(selected[i])
        if k < 0:
            losses.append(S[i].sum() * 0)
            continue
        kept = ~positives[i]
        kept[k] = True
        losses.append(torch.logsumexp(S[i][kept], dim=0) - S[i, k])
    return torch.stack(losses)


def hard_rows(S: Tensor, positives: Tensor, selections: Tensor) -> Tensor:
    """Equation 6 averaged over the R rounds of masked random pair selection, (M,).

    ``selections`` is (R, M): the text drawn for each image in each round.
    """
    rounds = [masked_info_nce(S, positives, selected) for selected in selections]
    return reduce(rounds, "rounds m -> m", "mean")


def hard_rows_expected(S: Tensor, positives: Tensor) -> Tensor:
    """The limit of infinitely many rounds: every positive of the row in turn, averaged, (M,)."""
    losses = []
    for i in range(S.shape[0]):
        terms = []
        for k in torch.nonzero(positives[i]).flatten():
            kept = ~positives[i]
            kept[k] = True
            terms.append(torch.logsumexp(S[i][kept], dim=0) - S[i, k])
        losses.append(torch.stack(terms).mean() if terms else S[i].sum() * 0)
    return torch.stack(losses)


def soft_rows(S: Tensor, T: Tensor) -> Tensor:
    """Equation 8: cross-entropy of each row of S against the teacher's softmax, (M,)."""
    target = torch.softmax(T, dim=1).detach()
    return -einsum(target, torch.log_softmax(S, dim=1), "m n, m n -> m")


def mfh_rows(
    S: Tensor, T: Tensor | None, positives: Tensor, drawn: Tensor | None, hard_weight: float
) -> Tensor:
    """Equation 9 for each row: a * hard + (1 - a) * soft, or the hard loss without a teacher."""
    hard = hard_rows_expected(S, positives) if drawn is None else hard_rows(S, positives, drawn)
    if T is None:
        return hard
    return hard_weight * hard + (1 - hard_weight) * soft_rows(S, T)


def mfh_direction(
    S: Tensor, T: Tensor | None, positives: Tensor, drawn: Tensor | None, hard_weight: float
) -> Tensor:
    """Equation 9 in one direction: the hard mean over rows with a positive, the soft over all."""
    hard = hard_rows_expected(S, positives) if drawn is None else hard_rows(S, positives, drawn)
    has_positive = positives.any(dim=1)
    hard_mean = hard[has_positive].sum() / has_positive.sum()
    if T is None:
        return hard_mean
    return hard_weight * hard_mean + (1 - hard_weight) * soft_rows(S, T).mean()


def mfh_loss(
    x: Tensor,
    y: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    *,
    scale: Tensor | float,
    teacher_x: Tensor | None = None,
    teacher_y: Tensor | None = None,
    teacher_scale: Tensor | float | None = None,
    hard_weight: float = 0.6,
    selection: tuple[Tensor, Tensor] | None = None,
    reduction: str = "mean",
) -> Tensor | tuple[Tensor, Tensor]:
    """Equations 5, 7 and 9: the mean of both directions, or the rows of each ("none").

    ``selection`` is (image_to_text (R, M), text_to_image (R, N)); None is the exact
    expectation of the draw. Without a teacher the loss is the hard loss alone.
    """
    S = similarity(x, y, scale)
    positives = group_matrix(image_ids, text_ids)
    T = None
    if teacher_x is not None and teacher_y is not None:
        T = similarity(teacher_x, teacher_y, scale if teacher_scale is None else teacher_scale)
        T = T.detach()
    images = S, T, positives, None if selection is None else selection[0], hard_weight
    texts = (
        S.T,
        None if T is None else T.T,
        positives.T,
        None if selection is None else selection[1],
        hard_weight,
    )
    if reduction == "none":
        return mfh_rows(*images), mfh_rows(*texts)
    return (mfh_direction(*images) + mfh_direction(*texts)) / 2
