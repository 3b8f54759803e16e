"""Contrast inside one modality: image with image, text with text."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mxm_kernels import backends, checks
from mxm_kernels import selection as draws
from mxm_kernels.batch import autocast
from mxm_kernels.direction import Direction, image_to_text
from mxm_kernels.fold_tables import FoldTables
from mxm_kernels.folds import Folds, Ids
from mxm_kernels.functional.info_nce import check_flag
from mxm_kernels.losses import masked_rows, unmasked_rows
from mxm_kernels.operator import statistics
from mxm_kernels.reduction import nonnegative_weights
from mxm_kernels.segments import Segments, take


def fused_intra_modal_loss(
    features: Tensor,
    folds: int | Ids,
    *,
    logit_scale: float | Tensor,
    mask_positives: bool = True,
    rounds: int | None = None,
    generator: torch.Generator | None = None,
    row_weights: Tensor | None = None,
    reduction: str = "mean",
    backend: str | None = None,
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
    x = autocast(features)
    checks.check_matrix("features", x)
    checks.check_rounds(rounds)
    checks.check_draw(generator, None)
    check_flag("mask_positives", mask_positives)
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    s = checks.as_scale("logit_scale", logit_scale, x, dtype)
    name = backends.choose(backend, x.device, x.dtype)
    d = _other_rows(x, _tables(folds, x), s, name)
    weights = _weights(d, rounds, generator, dtype, name)
    losses = (masked_rows if mask_positives else unmasked_rows)(d, weights)
    row_weights = nonnegative_weights("row_weights", row_weights, losses, d.has_positive)
    if row_weights is not None:
        losses = row_weights * losses
    if reduction == "none":
        return losses
    count = d.has_positive.sum() if row_weights is None else (row_weights * d.has_positive).sum()
    return losses.sum() / count


def _tables(folds: int | Ids, x: Tensor) -> FoldTables:
    if isinstance(folds, int) and not isinstance(folds, bool):
        made = Folds.uniform(folds, folds)
    elif isinstance(folds, bool | float | str):
        raise TypeError(
            f"folds must be an integer or the ids of the rows, got {type(folds).__name__}"
        )
    else:
        made = Folds.from_ids(folds, folds).to(x.device)
    tables = made.tables(x.shape[0], x.shape[0], x.device)
    if tables.pairs == tables.images:
        raise ValueError(
            "folds: expected an instance with at least two rows, got one row in every instance"
        )
    return tables


def _other_rows(x: Tensor, tables: FoldTables, s: Tensor, backend: str) -> Direction:
    """The rows of S without its diagonal, which is among the positives of every row."""
    d = image_to_text(statistics(x, x, None, s, None, tables, backend), tables, s)
    rows = torch.arange(tables.images, device=x.device)
    offsets = tables.image_offsets - torch.arange(tables.images + 1, device=x.device)
    others = tables.pairs - tables.images
    owners = rows.repeat_interleave(offsets.diff(), output_size=others)
    # A row's own place among its positives is its rank; those after it move up by one.
    lanes = torch.arange(others, device=x.device) - offsets[owners]
    lanes = lanes + (lanes >= tables.text_ranks[owners])
    kept = tables.image_offsets[owners] + lanes
    return replace(
        d, S=take(d.S, kept), segments=Segments(offsets, owners), columns=tables.texts - 1
    )


def _weights(
    d: Direction,
    rounds: int | None,
    generator: torch.Generator | None,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    offsets, owners = d.segments
    if rounds is None:
        return 1 / d.counts[owners].to(dtype)
    return draws.drawn_frequencies(offsets, int(rounds), generator, owners.shape[0], dtype, backend)
