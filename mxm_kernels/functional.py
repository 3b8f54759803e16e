"""The public functions: check the arguments, run the operator, mix the losses."""

from __future__ import annotations

from numbers import Integral
from typing import TypeVar, cast

import torch
from torch import Tensor

from mxm_kernels import backends, checks
from mxm_kernels import selection as draws
from mxm_kernels.fold_tables import FoldTables
from mxm_kernels.folds import Folds, Ids
from mxm_kernels.losses import Direction, directions, hard_rows, soft_rows
from mxm_kernels.operator import statistics

_MaybeTensor = TypeVar("_MaybeTensor", Tensor, Tensor | None)

FoldsLike = Folds | tuple[int, int] | tuple[Ids, Ids]


def fused_mfh_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike,
    *,
    logit_scale: float | Tensor,
    teacher_image_features: Tensor | None = None,
    teacher_text_features: Tensor | None = None,
    teacher_logit_scale: float | Tensor | None = None,
    hard_weight: float = 0.6,
    rounds: int | None = 10,
    generator: torch.Generator | None = None,
    selection: tuple[Tensor, Tensor] | None = None,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""Multifold-aware hybrid (MFH) contrastive loss of MXM-CLR, without an M x N matrix.

    With S = s x y^T, T the teacher's, Pos(i) the texts of the instance of image i, n_i the
    log-sum-exp of S over the other texts, and w_ik the share of the R rounds that drew k:

        h_i = sum_{k in Pos(i)} w_ik softplus(n_i - S_ik)                        hard
        q_i = logsumexp_j S_ij - sum_j softmax_j(T_i.) S_ij                      soft
        L   = a/2 (mean_i h_i + mean_j h'_j) + (1-a)/2 (mean_i q_i + mean_j q'_j)

    and the same down the columns for h' and q' (arXiv 2303.10839, equations 5 to 9). The hard
    means count the rows that have a positive. Without a teacher L is the hard loss alone;
    with ``hard_weight=0`` it is the soft loss alone.

    Args:
        image_features: (M, D), L2-normalised; float32, bfloat16, float16, or float64 on the
            ``blocked`` backend. Under autocast they are cast to its dtype.
        text_features: (N, D), same dtype and device.
        folds: which rows show the same instance: :class:`Folds`, or a pair ``(views, captions)``
            of integers, or a pair ``(image_ids, text_ids)``.
        logit_scale: s = 1 / temperature, positive; a number, or a 0-d or [1] tensor, which
            receives its gradient.
        teacher_image_features: (M, D'), detached here; with ``teacher_text_features`` or not
            at all. With ``hard_weight=1`` they are not read.
        teacher_text_features: (N, D').
        teacher_logit_scale: t; by default ``logit_scale``, detached.
        hard_weight: a, in [0, 1].
        rounds: R >= 1 random selections, or None for their exact expectation (no randomness,
            same cost).
        generator: source of the draw. A CPU generator draws the same on every backend and
            device; None uses the default generator of the features' device.
        selection: drawn positives instead of a draw: (image_to_text (R, M), text_to_image
            (R, N)), indices into the other modality, -1 for a row without a positive; see
            :func:`draw_selection`. ``rounds`` and ``generator`` are then not used. Checking it
            waits for a GPU.
        reduction: "mean", or "none" for the mixed losses of each row, a pair
            (per_image (M,), per_text (N,)); a row without a positive has hard loss 0 there.
        backend: "triton", "native", "blocked", or None to choose by device.

    Returns:
        A 0-d tensor, or the pair for ``reduction="none"``; float32 (float64 for float64
        features). Non-finite features give a non-finite loss.

    Raises:
        TypeError, ValueError: an argument is not as described; a batch without rows or
            without a positive pair.
        BackendUnavailableError: the backend asked for cannot run; the message says why.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> from mxm_kernels import fused_mfh_loss
        >>> _ = torch.manual_seed(0)
        >>> images = normalize(torch.randn(12, 64)).requires_grad_()  # 2 instances x 6 views
        >>> texts = normalize(torch.randn(10, 64)).requires_grad_()  # 2 instances x 5 captions
        >>> loss = fused_mfh_loss(images, texts, (6, 5), logit_scale=1 / 0.03)
        >>> loss.backward()
        >>> images.grad.shape
        torch.Size([12, 64])
    """
    x, y = _autocast(image_features), _autocast(text_features)
    teachers = _autocast(teacher_image_features), _autocast(teacher_text_features)
    checks.check_features(x, y)
    checks.check_options(hard_weight, rounds, reduction)
    checks.check_draw(generator, selection)
    teacher = checks.check_teacher(x, y, *teachers)
    if teacher is None and hard_weight == 0:
        raise ValueError(
            "hard_weight=0 is the soft loss alone, which needs teacher_image_features and "
            "teacher_text_features"
        )
    if teacher is None and teacher_logit_scale is not None:
        raise ValueError("teacher_logit_scale was given without teacher features")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    s = checks.as_scale("logit_scale", logit_scale, x, dtype)
    t = s.detach()
    if teacher_logit_scale is not None:
        t = checks.as_scale("teacher_logit_scale", teacher_logit_scale, x, dtype).detach()
    name = backends.choose(backend, x.device, x.dtype)
    tables = _tables(folds, x, y)

    hard = 1.0 if teacher is None else float(hard_weight)
    soft_teacher = teacher if hard < 1 else None
    stats = statistics(x, y, soft_teacher, s, None if soft_teacher is None else t, tables, name)
    weights = _weights(tables, rounds, generator, selection, dtype) if hard > 0 else (None, None)
    rows, cols = directions(stats, tables)
    if reduction == "none":
        losses = _mix_rows(rows, weights[0], hard), _mix_rows(cols, weights[1], hard)
        return cast(Tensor, losses)  # iterates into tensors, as a Tensor does
    return (_mix_mean(rows, weights[0], hard) + _mix_mean(cols, weights[1], hard)) / 2


def draw_selection(
    folds: FoldsLike,
    image_features: Tensor,
    text_features: Tensor,
    *,
    rounds: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw the positives that :func:`fused_mfh_loss` would draw from ``generator``.

    Uniform over the positives of each row, with replacement, rows and columns independent.
    Use it to hold a draw fixed, or to draw outside a region compiled by torch.compile, which
    cannot trace a generator.

    Args:
        folds: as in :func:`fused_mfh_loss`.
        image_features: (M, D); only its length and device are used.
        text_features: (N, D).
        rounds: R >= 1.
        generator: source of the draw.

    Returns:
        (image_to_text (R, M), text_to_image (R, N)), int64: the drawn positive of each row as
        an index into the other modality, -1 for a row without one.

    Example:
        >>> import torch
        >>> from mxm_kernels import draw_selection
        >>> to_text, to_image = draw_selection(
        ...     ([0, 1], [1, 0]), torch.ones(2, 4), torch.ones(2, 4), rounds=1
        ... )
        >>> to_text
        tensor([[1, 0]])
    """
    x, y = _autocast(image_features), _autocast(text_features)
    checks.check_features(x, y)
    checks.check_options(1.0, rounds, "mean")
    checks.check_draw(generator, None)
    if rounds is None:
        raise TypeError("rounds must be an integer, got None: an expectation draws nothing")
    tables = _tables(folds, x, y)
    slots, places = draws.draw_places(tables, rounds, generator)
    texts, images = tables.pair_texts[slots], tables.pair_images[tables.text_slots[places]]
    return torch.where(slots < 0, -1, texts), torch.where(places < 0, -1, images)


def _autocast(features: _MaybeTensor) -> _MaybeTensor:
    """Cast as torch.autocast casts the factors of a matrix product; float64 stays."""
    if not isinstance(features, Tensor) or features.is_meta:
        return features
    device = features.device.type
    if not torch.is_autocast_enabled(device):
        return features
    if features.dtype not in checks.FEATURE_DTYPES or features.dtype == torch.float64:
        return features
    return cast(_MaybeTensor, features.to(torch.get_autocast_dtype(device)))


def _tables(folds: FoldsLike, x: Tensor, y: Tensor) -> FoldTables:
    """Resolve ``folds`` for these features; a batch without a positive pair is an error."""
    if not isinstance(folds, Folds):
        if not isinstance(folds, tuple | list) or len(folds) != 2:
            raise TypeError(
                "folds must be Folds, a pair (views, captions) of integers or a pair "
                f"(image_ids, text_ids), got {type(folds).__name__}"
            )
        first, second = folds
        if isinstance(first, Integral) and isinstance(second, Integral):
            folds = Folds.uniform(int(first), int(second))
        else:
            folds = Folds.from_ids(cast(Ids, first), cast(Ids, second)).to(x.device)
    tables = folds.tables(x.shape[0], y.shape[0], x.device)
    if tables.pairs == 0:
        raise ValueError(
            "folds: expected at least one positive pair, got none: no id is on both the image "
            "and the text side"
        )
    return tables


def _weights(
    tables: FoldTables,
    rounds: int | None,
    generator: torch.Generator | None,
    selection: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype,
) -> draws.Weights:
    if selection is not None:
        return draws.given_weights(tables, selection, dtype)
    if rounds is None:
        return draws.expected_weights(tables, dtype)
    return draws.drawn_weights(tables, int(rounds), generator, dtype)


def _mix_rows(direction: Direction, weights: Tensor | None, hard: float) -> Tensor:
    """Per row: a h + (1 - a) q."""
    if weights is None:
        return soft_rows(direction)
    losses = hard_rows(direction, weights)
    return losses if hard == 1 else hard * losses + (1 - hard) * soft_rows(direction)


def _mix_mean(direction: Direction, weights: Tensor | None, hard: float) -> Tensor:
    """Mean of a h over the rows with a positive, plus mean of (1 - a) q over all rows."""
    if weights is None:
        return soft_rows(direction).mean()
    mean = hard_rows(direction, weights).sum() / direction.with_positive
    return mean if hard == 1 else hard * mean + (1 - hard) * soft_rows(direction).mean()
