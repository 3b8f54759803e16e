"""SigLIP: every pair by itself, through a sigmoid, with a bias."""

from __future__ import annotations

from numbers import Real
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import Unpack

from mxm_kernels.algebra import selection as draws
from mxm_kernels.algebra.batch import Batch, make_batch
from mxm_kernels.algebra.plain import is_one_mean
from mxm_kernels.algebra.reduction import Side, mix
from mxm_kernels.algebra.row_options import row_weights
from mxm_kernels.algebra.run import scaled
from mxm_kernels.backends.problem import SigmoidWeights
from mxm_kernels.operators.sigmoid import sigmoid_statistics
from mxm_kernels.operators.sigmoid_loss import sigmoid_loss
from mxm_kernels.options import FoldsLike, Options, Scale, check_not_taken, resolve
from mxm_kernels.parallel.distributed import SharedErrors
from mxm_kernels.parallel.over_ranks import sigmoid_over_ranks
from mxm_kernels.segments import permute, segment_sum

NOT_TAKEN = (
    "teacher_image_features",
    "teacher_text_features",
    "teacher_logit_scale",
    "teacher_dtype",
    "soft_weight",
    "label_smoothing",
    "diagnostics",
)


def fused_siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None = None,
    *,
    logit_scale: Scale,
    logit_bias: float | Tensor,
    **options: Unpack[Options],
) -> Tensor:
    """Sigmoid loss of SigLIP, with one or several positives per row.

        l_i = sum_j softplus(-z_ij (S_ij + b)),    z_ij = 1 if j in Pos(i), else -1

    and the same down the columns; L = (mean_i l_i + mean_j l'_j) / 2. For M = N that is the
    loss of arXiv 2303.15343, section 3.2, whatever ``image_to_text_weight`` is.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: which rows show the same instance, as in :func:`fused_mfh_loss`; None: row i of
            both sides is a pair, and every other row a negative (M = N).
        logit_scale: s, as in :func:`fused_mfh_loss`.
        logit_bias: b; a number, or a 0-d or [1] tensor, which receives its gradient.
        **options: see :class:`Options`. ``pair_weights`` multiply the terms of the positives.
            The teacher's options, ``label_smoothing`` and ``diagnostics`` are not taken.

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from torch.nn.functional import logsigmoid, normalize
        >>> from mxm_kernels import fused_siglip_loss
        >>> images, texts = normalize(torch.randn(8, 4)), normalize(torch.randn(8, 4))
        >>> loss = fused_siglip_loss(images, texts, logit_scale=10.0, logit_bias=-10.0)
        >>> logits, z = 10 * images @ texts.T - 10, 2 * torch.eye(8) - 1
        >>> bool(torch.isclose(loss, -logsigmoid(z * logits).sum() / 8))
        True
    """
    with SharedErrors(options.get("process_group")):
        check_not_taken("fused_siglip_loss", NOT_TAKEN, options)
        o = resolve(options)
        _check_bias(logit_bias)
    folds = (1, 1) if folds is None else folds
    own = "siglip", logit_bias, getattr(logit_bias, "requires_grad", False)
    batch = make_batch(image_features, text_features, folds, logit_scale, o, own=own)
    bias = _as_bias(logit_bias, batch)
    if is_one_mean(batch, o.pair_weights or ()):
        return _in_one_pass(batch, bias)
    rows, cols = _rows(batch, bias)
    losses = _with_queue(batch, 0, bias, rows), _with_queue(batch, 1, bias, cols)

    def side(k: int) -> Side:
        weights = row_weights(batch, k, losses[k], None)
        return Side(losses[k], batch.rows[k], batch.rows[k], batch.sum, weights)

    return mix(batch, side)


def _in_one_pass(b: Batch, bias: Tensor) -> Tensor:
    """The loss with its gradients: what multiplies a term is known before any term is."""
    share, given = b.options.image_to_text_weight, b.options.pair_weights
    none = b.x.new_empty(0, dtype=b.dtype)
    pairs = (none, none) if given is None else draws.in_slots(b.tables, given, b.dtype)
    weights = SigmoidWeights(_shares(b, 0, share), _shares(b, 1, 1 - share), *pairs)
    return sigmoid_loss(b.x, b.y, b.scales[0], bias, b.tables, weights, b.backend)


def _shares(b: Batch, side: int, share: float) -> Tensor:
    """(rows,) what the loss of each row of one side is multiplied with in the mean."""
    rows = b.x.new_full((b.rows[side],), share / b.rows[side], dtype=b.dtype)
    weights = row_weights(b, side, rows, None) if share else None
    return rows if weights is None else weights / weights.sum() * share


def _rows(b: Batch, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of rows and columns, over the batch."""
    if b.one_scale:
        first = second = _run(b, b.x, b.y, b.scales[0], bias)
    else:
        one = b.x.new_ones((), dtype=b.dtype)
        first = _run(b, scaled(b.x, b.scales[0]), b.y, one, bias)
        second = _run(b, b.x, scaled(b.y, b.scales[1]), one, bias)
    terms = [-logsigmoid(S + bias) for S in (first.S_rows, second.S_cols)]
    if b.options.pair_weights is not None:
        weights = b.own_pairs(draws.own_weights(b.tables, b.options.pair_weights, b.dtype))
        terms = [w * term for w, term in zip(weights, terms, strict=True)]
    segments = b.segments
    return (
        first.r_rows + segment_sum(terms[0], segments[0]),
        second.r_cols + segment_sum(terms[1], segments[1]),
    )


class _Sums(NamedTuple):
    """Of the rows and columns of this process."""

    r_rows: Tensor  # sum of softplus over the negatives
    S_rows: Tensor  # S of the positives, row after row
    r_cols: Tensor
    S_cols: Tensor  # column after column


def _run(b: Batch, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> _Sums:
    if b.shard is not None:
        return _Sums(*sigmoid_over_ranks(b.shard, x, y, scale, bias, b.backend))
    t = b.tables
    s = sigmoid_statistics(x, y, scale, bias, t, b.backend)
    by_text = permute(s.positives, t.text_slots, t.slot_places)
    return _Sums(s.r_rows, s.positives, s.r_cols, by_text)


def _with_queue(b: Batch, side: int, bias: Tensor, losses: Tensor) -> Tensor:
    """Add the negatives that a queue brings to the rows of one side."""
    queue = b.queues[side]
    if queue is None:
        return losses
    x, s = (b.x, b.y)[side], b.scales[side]
    if s.ndim:
        x, s = scaled(x, s), b.x.new_ones((), dtype=b.dtype)
    return losses + sigmoid_statistics(x, queue.features, s, bias, queue.tables, b.backend).r_rows


def _check_bias(bias: object) -> None:
    """What can be said of it without the features."""
    if isinstance(bias, Tensor):
        if bias.numel() != 1 or bias.ndim > 1:
            raise ValueError(
                f"logit_bias must be 0-d or of shape [1], got shape {tuple(bias.shape)}"
            )
        if not bias.dtype.is_floating_point:
            raise TypeError(f"logit_bias must be a floating-point tensor, got {bias.dtype}")
        return
    if isinstance(bias, bool) or not isinstance(bias, Real):
        raise TypeError(f"logit_bias must be a number or a tensor, got {type(bias).__name__}")
    if not abs(cast(float, bias)) <= torch.finfo(torch.float32).max:
        raise ValueError(f"logit_bias must be finite, got {bias}")


def _as_bias(bias: float | Tensor, b: Batch) -> Tensor:
    if not isinstance(bias, Tensor):
        return torch.full((), float(bias), dtype=b.dtype, device=b.x.device)
    if bias.device != b.x.device:
        raise ValueError(
            f"logit_bias must be on the device of image_features, {b.x.device}, got {bias.device}"
        )
    return bias.reshape(()).to(b.dtype)
