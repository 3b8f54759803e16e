"""Soft targets: a weight for each pair, sparse or of low rank, without an M x N matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import Unpack

from mxm_kernels import Folds, Options, Rows, contrastive_rows


# --8<-- [start:cross_entropy]
def one_pair(image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
    """Folds for a loss that reads whole rows: any pair may be the positive, here the first."""
    return torch.arange(len(image_features)), -torch.arange(len(text_features))


def rows_of(x: Tensor, y: Tensor, logit_scale: float | Tensor, options: Options) -> Rows:
    """The rows. A soft target reads all columns of a row."""
    if "image_offsets" in options or "text_offsets" in options:
        raise TypeError("soft targets take no image_offsets or text_offsets: the target lacks them")
    return contrastive_rows(x, y, one_pair(x, y), logit_scale=logit_scale, **options)


def whole_rows(rows: Rows) -> Tensor:
    """(R,) log-sum-exp of S over all columns of a row, positives and negatives."""
    return torch.logaddexp(rows.neg_lse, rows.logsumexp(rows.positives))


def with_ones(features: Tensor, rows: Rows) -> Tensor:
    """(M, D) -> (M, D + 1): a column of ones, whose weighted sum is the total of the weights."""
    return pad(features.to(rows.neg_lse.dtype), (0, 1), value=1.0)


def cross_entropy(rows: Rows, of_images: Tensor, of_texts: Tensor) -> Tensor:
    """The loss from W [y, 1] (M, D + 1) and W^T [x, 1] (N, D + 1)."""
    sums, totals = torch.cat([of_images, of_texts]).split([of_images.shape[1] - 1, 1], 1)
    target = rows.logit_scale * (torch.cat([rows.batch.x, rows.batch.y]) * sums).sum(1)
    return rows.mean(totals[:, 0] * whole_rows(rows) - target, of_every_row=True)


# --8<-- [end:cross_entropy]


# --8<-- [start:soft_target_loss]
class LowRank:
    """W = left right^T of ``left`` (M, r) and ``right`` (N, r)."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right

    def __matmul__(self, features: Tensor) -> Tensor:
        return self.left @ (self.right.T @ features)

    def t(self) -> LowRank:
        """The transpose."""
        return LowRank(self.right, self.left)


def soft_target_loss(
    image_features: Tensor,
    text_features: Tensor,
    targets: Tensor | LowRank,
    *,
    logit_scale: float | Tensor,
    **options: Unpack[Options],
) -> Tensor:
    """Cross-entropy against ``targets`` W (M, N): a sparse or dense tensor, or :class:`LowRank`."""
    x, y = image_features, text_features
    rows = rows_of(x, y, logit_scale, options)
    return cross_entropy(rows, targets @ with_ones(y, rows), targets.t() @ with_ones(x, rows))


# --8<-- [end:soft_target_loss]


# --8<-- [start:m3co]
def mixup_targets(partners: Tensor, shares: Tensor) -> Tensor:
    """W (M, M), sparse: a share of each row for itself, and the rest for its partner."""
    i = torch.arange(len(shares), device=shares.device)
    places = torch.stack([i.repeat(2), torch.cat([i, partners])])
    weights = torch.cat([shares, 1 - shares])
    return torch.sparse_coo_tensor(places, weights, (len(i), len(i)), check_invariants=True)


def m3co_loss(
    image_features: Tensor,
    text_features: Tensor,
    mixed_image_features: Tensor,
    mixed_text_features: Tensor,
    image_targets: Tensor,
    text_targets: Tensor,
    *,
    logit_scale: float | Tensor,
    **options: Unpack[Options],
) -> Tensor:
    """M3Co: mixed images against texts, plus images against mixed texts.

    The targets are those of :func:`mixup_targets`, for the mixed images and the mixed texts.
    """
    images = mixed_image_features, text_features, image_targets
    texts = image_features, mixed_text_features, text_targets.t()
    losses = [soft_target_loss(*a, logit_scale=logit_scale, **options) for a in (images, texts)]
    return losses[0] + losses[1]


# --8<-- [end:m3co]


# --8<-- [start:supremix]
def mixed_pair_targets(
    image_labels: Tensor, text_labels: Tensor, owners: Tensor, is_positive: Tensor
) -> Tensor:
    """W (M, N + K), sparse: even over the texts of an image's label and its positive mixtures.

    ``owners`` (K,) is the image that a mixture was made for, ``is_positive`` (K,) its kind.
    """
    M, N, K = len(image_labels), len(text_labels), len(owners)
    i, j = Folds.from_ids(image_labels, text_labels).pairs(M, N, image_labels.device)
    k = is_positive.nonzero()[:, 0]
    places = torch.stack([torch.cat([i, owners[k]]), torch.cat([j, N + k])])
    weights = 1 / torch.bincount(places[0], minlength=M)[places[0]]
    return torch.sparse_coo_tensor(places, weights, (M, N + K), check_invariants=True)


def mixed_pairs_loss(
    image_features: Tensor,
    text_features: Tensor,
    mixtures: Tensor,
    owners: Tensor,
    targets: Tensor,
    *,
    logit_scale: float | Tensor,
    **options: Unpack[Options],
) -> Tensor:
    """Images against texts (N, D) and ``mixtures`` (K, D), each a column of its owner alone."""
    columns = torch.cat([text_features, mixtures.detach()])
    of_no_image = torch.full((len(text_features),), -1, device=owners.device)
    images = torch.arange(len(image_features), device=owners.device)
    options["within_ids"] = images, torch.cat([of_no_image, owners])
    options["image_to_text_weight"] = 1.0
    return soft_target_loss(image_features, columns, targets, logit_scale=logit_scale, **options)


# --8<-- [end:supremix]


# --8<-- [start:class_table]
def class_averages(
    rows: Rows, table: Tensor, own: Tensor, others: Tensor, features: Tensor
) -> Tensor:
    """(rows, D + 1) averages of ``features``, with ones, by the table's weights, on all ranks."""
    sums = with_ones(features, rows)
    sums = sums.new_zeros(table.shape[1], sums.shape[1]).index_add(0, others, sums)
    weighted = table @ rows.batch.sum(sums)
    return (weighted / weighted[:, -1:].clamp(min=torch.finfo(sums.dtype).tiny))[own]


def class_table_loss(
    image_features: Tensor,
    text_features: Tensor,
    classes: tuple[Tensor, Tensor],
    table: Tensor,
    *,
    logit_scale: float | Tensor,
    **options: Unpack[Options],
) -> Tensor:
    """Targets ``table[a_i, b_j]``, normalised along each row, of classes a (M,) and b (N,).

    ``table`` is (classes of images, classes of texts), not negative.
    """
    x, y, (a, b) = image_features, text_features, classes
    rows = rows_of(x, y, logit_scale, options)
    of_images = class_averages(rows, table, a, b, rows.batch.y)
    of_texts = class_averages(rows, table.T, b, a, rows.batch.x)
    return cross_entropy(rows, of_images, of_texts)


# --8<-- [end:class_table]
