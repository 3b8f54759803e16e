"""The intra-modal loss: contrast inside one modality, image with image or text with text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mxm_kernels import checks
from mxm_kernels.core import formulas, pair_weights
from mxm_kernels.core.batch import Batch, make_batch
from mxm_kernels.core.features import autocast
from mxm_kernels.core.mean import nan_everywhere, row_factors
from mxm_kernels.core.options import FilterStrategy, HyperParameters, Options, Reduction
from mxm_kernels.core.row_losses import loss_of
from mxm_kernels.core.vectors import (
    as_ids,
    as_offsets,
    as_row_weights,
    as_thresholds,
    check_teacher_rows,
)
from mxm_kernels.folds import Folds, Ids, as_one_side
from mxm_kernels.folds.make import without_itself
from mxm_kernels.folds.segments import Segments
from mxm_kernels.losses.intra_modal_soft import soft_losses
from mxm_kernels.losses.loss_function import loss_function
from mxm_kernels.losses.module import Loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def check_intra_modal(
    mask_positives: bool = True,
    rounds: int | None = None,
    soft_weight: float = 0.0,
    generator: object = None,
    logit_scale: object = 1.0,
) -> None:
    """The checks of the arguments that need no features."""
    checks.check_rounds(rounds)
    checks.check_draw(generator, None)
    checks.check_flag("mask_positives", mask_positives)
    checks.check_fraction("soft_weight", soft_weight)
    if isinstance(logit_scale, (tuple, list)):
        raise TypeError("logit_scale must be a number or a tensor, got a pair")


@loss_function(check_intra_modal)
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
    offsets: Tensor | None = None,
    teacher_offsets: Tensor | None = None,
    exclude_ids: Tensor | None = None,
    within_ids: Tensor | None = None,
    filter_margin: float | None = None,
    filter_strategy: FilterStrategy = "absolute",
    filter_thresholds: Tensor | None = None,
    reduction: Reduction = "mean",
    backend: str | None = None,
    process_group: ProcessGroup | None = None,
    gather: Literal["all", "ring"] = "all",
) -> Tensor:
    """Hard and soft loss inside one modality: views with views, or captions with captions.

        h_i = sum_{k in Pos(i)} w_ik softplus(n_i - S_ik)                mask_positives=True
        h_i = sum_{k in Pos(i)} w_ik (logaddexp(n_i, p_i) - S_ik)        mask_positives=False
        q_i = logsumexp_{j != i} S_ij - sum_{j != i} softmax_{j != i}(T_i.) S_ij
        L   = (1 - b) mean_i h_i + b mean_i q_i

    S = s x x^T are the similarities of the M rows x, and T = t a a^T those of the teacher's
    features a. Pos(i) are the other rows of the instance of row i; the rows of other instances are
    its negatives. n_i and p_i are the log-sum-exps of S over the negatives and the positives. Row i
    itself is neither, and it is not in the teacher's softmax. A row that is alone in its instance
    counts in the mean of q only.

    Added to a cross-modal loss this is the intra-modal term that arXiv 2303.10839 proposes in its
    conclusion; q is its equation 8 inside one modality. With ``mask_positives=False`` and
    ``rounds=None`` h is SupCon (arXiv 2004.11362, equation 2).

    The soft part is computed in float32. On one process and up to 2,896 rows it makes its
    matrices, of at most 32 MiB each. Otherwise it adds nine products of M M D to the four of the
    hard part, and O(M D) memory.

    Args:
        features: (M, D), L2-normalised.
        folds: which rows show the same instance: (M,) ids, or the number of consecutive rows
            of each instance.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        mask_positives: True leaves the other positives of a row out of its denominator.
        rounds: R >= 1 random selections, or None for their exact expectation.
        soft_weight: b, the share of the soft loss, in [0, 1]. Above 0 it needs
            ``teacher_features``.
        teacher_features: a, (M, D'), the teacher's features of the same rows. The loss detaches
            them.
        teacher_logit_scale: t, the teacher's scale; by default ``logit_scale``, detached.
        generator: source of the draw, as in :func:`fused_mfh_loss`.
        row_weights: (M,) non-negative weights of the rows in the means.
        offsets: b, (M,), added to both sides: S_ij = s <x_i, x_j> + b_i + b_j; as
            ``image_offsets`` in :class:`Options`.
        teacher_offsets: (M,) the same for T, detached; they need a soft part.
        exclude_ids: (M,) int64 ids of both sides, as in :class:`Options`.
        within_ids: (M,) int64 ids of both sides, as in :class:`Options`.
        filter_margin: m of the filter by ``teacher_features``, as in :class:`Options`. The soft
            part is not filtered.
        filter_strategy: "absolute" or "relative", as in :class:`Options`.
        filter_thresholds: (M,) instead of ``filter_margin``, as in :class:`Options`.
        reduction: "mean", or "none" for the losses of the rows (M,).
        backend: "triton", "native", "blocked", or None to choose by device.
        process_group: the rows of all its ranks are one batch, as in :class:`Options`.
        gather: "all" or "ring", as in :class:`Options`. The soft part always gathers all at once.

    Returns:
        A 0-d tensor, or (M,) for ``reduction="none"``. A row that is alone in its instance has
        hard loss 0.

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
    cast = autocast(features)
    checks.check_matrix("features", cast, may_be_empty=process_group is not None)
    filters = {"filter_margin": filter_margin, "filter_thresholds": filter_thresholds}
    of_T = {"teacher_logit_scale": teacher_logit_scale, "teacher_offsets": teacher_offsets}
    _check_teacher(cast, soft_weight, teacher_features, filters, of_T)
    of_rows = {
        "offsets": offsets,
        "teacher_offsets": teacher_offsets,
        "exclude_ids": exclude_ids,
        "within_ids": within_ids,
        "filter_thresholds": filter_thresholds,
    }
    _check_rules(of_rows, cast)
    as_row_weights("row_weights", row_weights, cast, torch.float32)
    options: Options = {
        "teacher_image_features": teacher_features,
        "teacher_text_features": teacher_features,
        "teacher_logit_scale": teacher_logit_scale,
        # Both directions are the same rows: the first is the loss.
        "image_offsets": offsets,
        "text_offsets": offsets,
        "teacher_image_offsets": teacher_offsets,
        "teacher_text_offsets": teacher_offsets,
        "exclude_ids": _both(exclude_ids),
        "within_ids": _both(within_ids),
        "filter_margin": filter_margin,
        "filter_strategy": filter_strategy,
        "filter_thresholds": _both(filter_thresholds),
        "image_weights": row_weights,
        "image_to_text_weight": 1.0,
        "reduction": reduction,
        "backend": backend,
        "process_group": process_group,
        "gather": gather,
    }
    batch = make_batch(
        features,
        features,
        _folds(folds, cast),
        logit_scale,
        options,
        reads_teacher=True,
        draws=rounds is not None and soft_weight < 1,
        generator=generator,
        names=("features", "features"),
        change_tables=without_itself,
    )
    _check_rows(batch, soft_weight)
    hard: Any = 0.0
    if soft_weight < 1:
        formula = formulas.info_nce if mask_positives else formulas.supcon_out
        hard = loss_of(batch, formula, _weights(batch, rounds))
        hard = hard[0] if reduction == "none" else hard
    if not soft_weight:
        return hard
    losses = row_factors(batch, of_every_row=True)[: len(batch.x)] * soft_losses(batch)
    soft = nan_everywhere(batch, losses if reduction == "none" else batch.sum(losses.sum()))
    return soft if soft_weight == 1 else (1 - soft_weight) * hard + soft_weight * soft


def _weights(batch: Batch, rounds: int | None) -> Tensor:
    """(L,) how much each other row of the instance weighs, drawn or in expectation."""
    tables = batch.tables
    if rounds is None:
        weights = pair_weights.expected_weights(tables, batch.dtype)
    else:
        images, owners = tables.offsets[: tables.images + 1], tables.pair_images
        drawn = pair_weights.drawn_weights(
            batch, Segments(images, owners), tables.pairs, int(rounds)
        )
        weights = torch.cat([drawn, drawn])  # the second half of the list counts for nothing
    return batch.local_positives(weights)


def _both(rows: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """The numbers of the rows, as those of both sides."""
    return None if rows is None else (rows, rows)


def _check_rules(given: dict[str, Tensor | None], features: Tensor) -> None:
    """The arguments with a number or an id for each row, under the names that they have here."""
    for name, value in given.items():
        if value is None:
            continue
        if name.endswith("ids"):
            as_ids(name, value, features)
        elif name.endswith("offsets"):
            as_offsets(name, value, features, torch.float32)
        else:
            as_thresholds(name, value, features, torch.float32)


def _check_teacher(
    features: Tensor,
    soft_weight: float,
    teacher: Tensor | None,
    filters: dict[str, Any],
    of_T: dict[str, Any],
) -> None:
    """The arguments of the soft part and of the filter, under the names that they have here."""
    filters, of_T = ({n: v for n, v in g.items() if v is not None} for g in (filters, of_T))
    if teacher is None:
        if soft_weight:
            raise ValueError(f"soft_weight={soft_weight} needs teacher_features")
        for name in filters:
            raise ValueError(f"{name} needs teacher_features")
        for name in of_T:
            raise ValueError(f"{name} was given without teacher features")
        return
    if not soft_weight and not filters:
        raise ValueError(
            "teacher features were given, but soft_weight is 0: nothing would read them"
        )
    if not soft_weight:
        for name in of_T:
            raise ValueError(f"{name} was given, but soft_weight is 0: nothing would read it")
    check_teacher_rows("teacher_features", autocast(teacher), "features", features)


def _check_rows(batch: Batch, soft_weight: float) -> None:
    """Another row of the instance for the hard loss, and any other for the soft loss."""
    if soft_weight < 1 and batch.tables.pairs == 0:
        raise ValueError(
            "folds: expected an instance with at least two rows, got one row in every instance"
        )
    rows = batch.tables.images
    if rows < 2:
        raise ValueError(f"features must have at least two rows for the soft loss, got {rows}")


def _folds(folds: int | Ids, features: Tensor) -> Folds:
    """Folds with the same instances on both sides."""
    made = as_one_side("folds", folds, len(features))
    if isinstance(made, int):
        return Folds.uniform(made, made)
    return Folds.from_ids(made, made).to(features.device)


class IntraModalLoss(Loss):
    """:func:`fused_intra_modal_loss` as a module, with its hyper-parameters fixed.

    Args:
        mask_positives: True leaves the other positives of a row out of its denominator.
        rounds: R >= 1 random selections, or None for their exact expectation.
        soft_weight: b, the share of the soft loss, in [0, 1].
        filter_margin: m of the filter, as in the function.
        filter_strategy: "absolute" or "relative".
        reduction: "mean" or "none".
        backend: "triton", "native", "blocked", or None to choose by device.
        process_group: the rows of all its ranks are one batch, as in :class:`Options`.
        gather: "all" or "ring", as in :class:`Options`.

    Example:
        >>> from mxm_kernels import IntraModalLoss
        >>> IntraModalLoss(rounds=4)  # doctest: +NORMALIZE_WHITESPACE
        IntraModalLoss(mask_positives=True, rounds=4, soft_weight=0.0, reduction='mean',
                       backend=None, process_group=None, gather='all')
    """

    function = staticmethod(fused_intra_modal_loss)

    def __init__(
        self,
        mask_positives: bool = True,
        rounds: int | None = None,
        soft_weight: float = 0.0,
        filter_margin: float | None = None,
        filter_strategy: FilterStrategy = "absolute",
        reduction: Literal["mean", "none"] = "mean",
        backend: str | None = None,
        process_group: ProcessGroup | None = None,
        gather: Literal["all", "ring"] = "all",
    ) -> None:
        hyper_parameters = {
            "mask_positives": mask_positives,
            "rounds": rounds,
            "soft_weight": soft_weight,
        }
        shared: HyperParameters = {
            "reduction": reduction,
            "backend": backend,
            "process_group": process_group,
            "gather": gather,
        }
        if filter_margin is not None or filter_strategy != "absolute":
            shared |= {"filter_margin": filter_margin, "filter_strategy": filter_strategy}
        super().__init__(hyper_parameters, shared)

    def forward(
        self,
        features: Tensor,
        folds: Any,
        *,
        logit_scale: float | Tensor,
        teacher_features: Tensor | None = None,
        teacher_logit_scale: float | Tensor | None = None,
        generator: torch.Generator | None = None,
        row_weights: Tensor | None = None,
        offsets: Tensor | None = None,
        teacher_offsets: Tensor | None = None,
        exclude_ids: Tensor | None = None,
        within_ids: Tensor | None = None,
        filter_thresholds: Tensor | None = None,
    ) -> Tensor:
        """Shapes and errors as in the function."""
        return self._run(
            features,
            folds,
            logit_scale=logit_scale,
            teacher_features=teacher_features,
            teacher_logit_scale=teacher_logit_scale,
            generator=generator,
            row_weights=row_weights,
            offsets=offsets,
            teacher_offsets=teacher_offsets,
            exclude_ids=exclude_ids,
            within_ids=within_ids,
            filter_thresholds=filter_thresholds,
        )
