"""Contrast inside one modality: image with image, text with text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from mxm_kernels import checks
from mxm_kernels.algebra.autocast import autocast
from mxm_kernels.algebra.batch import Batch, make_batch
from mxm_kernels.algebra.intra_modal import (
    other_rows,
    own_weights_of_others,
    rows_with_others,
    soft_rows_of_others,
    weights_for_mean,
)
from mxm_kernels.algebra.intra_modal_dense import is_small, soft_rows_of_small
from mxm_kernels.algebra.losses import row_losses
from mxm_kernels.algebra.plain import is_plain, plain_loss
from mxm_kernels.algebra.row_options import check_weights, nonnegative_weights
from mxm_kernels.algebra.run import rows_of
from mxm_kernels.backends.problem import Form
from mxm_kernels.folds import Folds, Ids, as_one_side
from mxm_kernels.functional.info_nce import check_flag
from mxm_kernels.options import Options, Reduction, check_fraction, resolve
from mxm_kernels.parallel.distributed import SharedErrors

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def fused_intra_modal_loss(
    features: Tensor,
    folds: int | Ids,
    *,
    logit_scale: float | Tensor,
    mask_positives: bool = True,
    rounds: int | None = None,
    soft_weight: float = 0.0,
    teacher_features: Tensor | None = None,
    teacher_logit_scale: float | Tensor | None = None,
    generator: torch.Generator | None = None,
    row_weights: Tensor | None = None,
    reduction: Reduction = "mean",
    backend: str | None = None,
    process_group: ProcessGroup | None = None,
    gather: Literal["all", "ring"] = "all",
) -> Tensor:
    """Hard and soft loss between the observations of one modality: views with views.

        h_i = sum_{k in Pos(i)} w_ik softplus(n_i - S_ik)                    masked
        h_i = sum_{k in Pos(i)} w_ik (logaddexp(n_i, p_i) - S_ik)            else
        q_i = logsumexp_{j != i} S_ij - sum_{j != i} softmax_{j != i}(T_i.) S_ij
        L   = (1 - b) mean_i h_i + b mean_i q_i

    with S = s x x^T, T = t a a^T the teacher's, Pos(i) the other rows of the instance of row i,
    and row i itself neither positive nor negative, nor in the teacher's softmax. Added to a
    cross-modal loss it is the intra-modal term that arXiv 2303.10839 proposes in its conclusion;
    unmasked and in expectation h is SupCon (arXiv 2004.11362, equation 2), and q is that paper's
    equation 8 inside one modality. Rows alone in their instance count in the mean of q only.

    The soft part is computed in float32. Up to 2,896 rows it makes its matrices, of at most
    32 MiB each; above it adds nine products of M M D to the four of the hard part, and O(M D)
    memory.

    Args:
        features: (M, D), L2-normalised.
        folds: which rows show the same instance: (M,) ids, or the number of consecutive rows
            of each instance.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        mask_positives: leave the other positives of a row out of its denominator.
        rounds: R >= 1 random selections, or None for their exact expectation.
        soft_weight: b, the share of the soft loss, in [0, 1]; needs ``teacher_features``.
        teacher_features: (M, D') a, of the same rows; detached here.
        teacher_logit_scale: t; by default ``logit_scale``, detached.
        generator: source of the draw, as in :func:`fused_mfh_loss`.
        row_weights: (M,) non-negative weights of the rows in the means.
        reduction: "mean", or "none" for the losses of the rows (M,).
        backend: "triton", "native", "blocked", or None to choose by device.
        process_group: the batch is that of all its ranks, as in :class:`Options`.
        gather: "all" or "ring", as in :class:`Options`; the soft part gathers all at once.

    Returns:
        A 0-d tensor, or (M,) for ``reduction="none"``. Rows alone in their instance have hard
        loss 0.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> from mxm_kernels import fused_intra_modal_loss
        >>> views = normalize(torch.randn(12, 8)).requires_grad_()  # 2 instances x 6 views
        >>> fused_intra_modal_loss(views, 6, logit_scale=10.0).backward()
        >>> views.grad.shape
        torch.Size([12, 8])
    """
    shared: Options = {
        "soft_weight": soft_weight,
        "teacher_image_features": teacher_features,
        "teacher_text_features": teacher_features,
        "teacher_logit_scale": teacher_logit_scale,
        "reduction": reduction,
        "backend": backend,
        "process_group": process_group,
        "gather": gather,
    }
    with SharedErrors(process_group):
        cast = autocast(features)
        checks.check_matrix("features", cast, may_be_empty=process_group is not None)
        checks.check_rounds(rounds)
        checks.check_draw(generator, None)
        check_flag("mask_positives", mask_positives)
        if isinstance(logit_scale, tuple | list):
            raise TypeError("logit_scale must be a number or a tensor, got a pair")
        _check_teacher(cast, soft_weight, teacher_features, teacher_logit_scale)
        o = resolve(shared)
        check_weights("row_weights", row_weights, cast)
        made = _folds(folds, cast)
    weighted = getattr(row_weights, "requires_grad", False)
    batch = make_batch(
        features,
        features,
        made,
        logit_scale,
        o,
        generator=generator,
        own=("intra_modal", rounds, mask_positives, row_weights is None, weighted),
        names=("features", "features"),
    )
    _check_rows(batch, soft_weight)
    if mask_positives and not soft_weight and row_weights is None and is_plain(batch, ()):
        of_pairs = weights_for_mean(batch, rounds)  # S is its own transpose, and so are they
        return plain_loss(batch, (of_pairs, of_pairs), Form("masked"))
    dense = soft_weight > 0 and is_small(batch)
    parts: list[_Part] = []
    if soft_weight < 1 or not dense:
        d = other_rows(batch, rows_of(batch))
    if soft_weight < 1:
        form = Form("masked" if mask_positives else "unmasked")
        losses = row_losses(d, form, own_weights_of_others(batch, d, rounds))
        counted = None if row_weights is None else d.has_positive
        number = rows_with_others(batch.tables)
        parts.append(_Part(1 - float(soft_weight), losses, number, counted))
    if soft_weight > 0:
        losses = soft_rows_of_small(batch) if dense else soft_rows_of_others(batch, d)
        parts.append(_Part(float(soft_weight), losses, batch.tables.images, None))
    is_part, first = process_group is not None, parts[0]
    weights = nonnegative_weights(
        "row_weights", row_weights, first.losses, first.counted, is_part=is_part
    )
    if reduction == "none":
        rows = [part.share * part.losses for part in parts]
        total = sum(rows[1:], rows[0])
        return total if weights is None else weights * total
    means = [_share_of_mean(batch, weights, part) for part in parts]
    return sum(means[1:], means[0])


class _Part(NamedTuple):
    """The hard or the soft loss."""

    share: float
    losses: Tensor  # (rows,), 0 where a row does not count
    number: Tensor | int  # of the rows that count, of all ranks
    counted: Tensor | None  # (rows,) which count, where it is asked; None: all


def _share_of_mean(batch: Batch, weights: Tensor | None, part: _Part) -> Tensor:
    """The share of a weighted mean over the rows that count, those of all ranks."""
    if weights is None:
        total = batch.sum(part.losses.sum()) / part.number
        return total if part.share == 1 else part.share * total
    weights = weights if part.counted is None else weights * part.counted
    return part.share * batch.sum((weights * part.losses).sum()) / batch.sum(weights.sum())


def _check_teacher(
    features: Tensor, soft_weight: float, teacher: Tensor | None, teacher_scale: object
) -> None:
    """The soft part's arguments, under the names that they have here."""
    check_fraction("soft_weight", soft_weight)
    if teacher is None:
        if soft_weight:
            raise ValueError(f"soft_weight={soft_weight} needs teacher_features")
        if teacher_scale is not None:
            raise ValueError("teacher_logit_scale was given without teacher features")
        return
    if not soft_weight:
        raise ValueError(
            "teacher features were given, but soft_weight is 0: nothing would read them"
        )
    checks.check_teacher_rows("teacher_features", autocast(teacher), "features", features)


def _check_rows(batch: Batch, soft_weight: float) -> None:
    """Another row of the instance for the hard loss, and any other for the soft loss."""
    rows = batch.tables.images
    if soft_weight < 1 and batch.tables.pairs == rows:
        raise ValueError(
            "folds: expected an instance with at least two rows, got one row in every instance"
        )
    if rows < 2:
        raise ValueError(f"features must have at least two rows for the soft loss, got {rows}")


def _folds(folds: int | Ids, features: Tensor) -> Folds:
    """The same instances on both sides."""
    made = as_one_side("folds", folds, len(features))
    if isinstance(made, int):
        return Folds.uniform(made, made)
    return Folds.from_ids(made, made).to(features.device)
