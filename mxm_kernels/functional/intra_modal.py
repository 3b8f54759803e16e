"""Contrast inside one modality: image with image, text with text."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mxm_kernels import checks
from mxm_kernels.algebra import selection as draws
from mxm_kernels.algebra.autocast import autocast
from mxm_kernels.algebra.batch import Batch, make_batch
from mxm_kernels.algebra.direction import Direction
from mxm_kernels.algebra.losses import masked_rows, unmasked_rows
from mxm_kernels.algebra.reduction import nonnegative_weights
from mxm_kernels.algebra.row_options import check_weights
from mxm_kernels.algebra.run import directions
from mxm_kernels.folds import Folds, Ids
from mxm_kernels.functional.info_nce import check_flag
from mxm_kernels.options import Options, Reduction, resolve
from mxm_kernels.parallel.distributed import SharedErrors
from mxm_kernels.segments import Segments, take

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def fused_intra_modal_loss(
    features: Tensor,
    folds: int | Ids,
    *,
    logit_scale: float | Tensor,
    mask_positives: bool = True,
    rounds: int | None = None,
    generator: torch.Generator | None = None,
    row_weights: Tensor | None = None,
    reduction: Reduction = "mean",
    backend: str | None = None,
    process_group: ProcessGroup | None = None,
    gather: Literal["all", "ring"] = "all",
) -> Tensor:
    """Hard loss between the observations of one modality: views with views, texts with texts.

        l_i = sum_{k in Pos(i)} w_ik softplus(n_i - S_ik)                    masked
        l_i = sum_{k in Pos(i)} w_ik (logaddexp(n_i, p_i) - S_ik)            else

    with S = s x x^T, Pos(i) the other rows of the instance of row i, and row i itself neither
    positive nor negative. Added to a cross-modal loss it is the intra-modal term that
    arXiv 2303.10839 proposes in its conclusion; unmasked and in expectation it is SupCon
    (arXiv 2004.11362, equation 2).

    Args:
        features: (M, D), L2-normalised.
        folds: which rows show the same instance: (M,) ids, or the number of consecutive rows
            of each instance.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        mask_positives: leave the other positives of a row out of its denominator.
        rounds: R >= 1 random selections, or None for their exact expectation.
        generator: source of the draw, as in :func:`fused_mfh_loss`.
        row_weights: (M,) non-negative weights of the rows in the mean.
        reduction: "mean", or "none" for the losses of the rows (M,).
        backend: "triton", "native", "blocked", or None to choose by device.
        process_group: the batch is that of all its ranks, as in :class:`Options`.
        gather: "all" or "ring", as in :class:`Options`.

    Returns:
        A 0-d tensor, or (M,) for ``reduction="none"``. Rows alone in their instance have loss
        0 and are not counted.

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
        o = resolve(shared)
        if process_group is not None:
            check_weights("row_weights", row_weights, cast)
        made = _folds(folds, features.device)
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
    if batch.tables.pairs == batch.tables.images:
        raise ValueError(
            "folds: expected an instance with at least two rows, got one row in every instance"
        )
    d = _other_rows(batch)
    losses = (masked_rows if mask_positives else unmasked_rows)(d, _weights(batch, d, rounds))
    is_part = process_group is not None
    row_weights = nonnegative_weights(
        "row_weights", row_weights, losses, d.has_positive, is_part=is_part
    )
    if row_weights is not None:
        losses = row_weights * losses
    if reduction == "none":
        return losses
    counted = d.has_positive if row_weights is None else row_weights * d.has_positive
    return batch.sum(losses.sum()) / batch.sum(counted.sum())


def _folds(folds: int | Ids, device: torch.device) -> Folds:
    if isinstance(folds, int) and not isinstance(folds, bool):
        return Folds.uniform(folds, folds)
    if isinstance(folds, bool | float | str):
        raise TypeError(
            f"folds must be an integer or the ids of the rows, got {type(folds).__name__}"
        )
    return Folds.from_ids(folds, folds).to(device)


def _other_rows(batch: Batch) -> Direction:
    """The rows of S without its diagonal, which is among the positives of every row."""
    d, _ = directions(batch, soft=False)
    tables, device = batch.tables, batch.x.device
    numbers = torch.arange(tables.images, device=device)
    mine, _ = batch.own_rows(numbers, numbers)
    rows = len(mine)
    offsets = d.segments.offsets - torch.arange(rows + 1, device=device)
    others = len(d.S) - rows
    owners = torch.arange(rows, device=device).repeat_interleave(offsets.diff(), output_size=others)
    # A row's own place among its positives is its rank; those after it move up by one.
    lanes = torch.arange(others, device=device) - offsets[owners]
    lanes = lanes + (lanes >= tables.text_ranks[mine][owners])
    kept = d.segments.offsets[owners] + lanes
    return replace(
        d, S=take(d.S, kept), segments=Segments(offsets, owners), columns=tables.texts - 1
    )


def _weights(batch: Batch, d: Direction, rounds: int | None) -> Tensor:
    """Of the positives of this process's rows; drawn for the whole batch, if they are drawn."""
    if rounds is None:
        return 1 / d.counts[d.segments.owners].to(batch.dtype)
    tables = batch.tables
    offsets = tables.image_offsets - torch.arange(tables.images + 1, device=batch.x.device)
    others = tables.pairs - tables.images
    every = draws.drawn_frequencies(offsets, int(rounds), batch.generator, others, batch.dtype)
    if batch.shard is None:
        return every
    first = batch.shard.pairs[0].start - batch.shard.first_image
    return every[first : first + len(d.S)]
