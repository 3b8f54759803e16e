"""SigLIP: a sigmoid loss of every (image, text) pair by itself, with a bias."""

from __future__ import annotations

from numbers import Real
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import Unpack

from mxm_kernels import checks
from mxm_kernels.backends.interface import SigmoidStatistics, SigmoidWeights
from mxm_kernels.backends.row_scales import scaled
from mxm_kernels.core import pair_weights
from mxm_kernels.core.arguments import as_0d_tensor
from mxm_kernels.core.batch import Batch, make_batch
from mxm_kernels.core.make_rows import rules_with_queue
from mxm_kernels.core.mean import reduced, row_factors
from mxm_kernels.core.options import FoldsLike, HyperParameters, Inputs, Options, Scale
from mxm_kernels.core.run import with_row_scales
from mxm_kernels.distributed.all_gather import sigmoid_over_ranks
from mxm_kernels.folds.segments import segment_sum
from mxm_kernels.losses.loss_function import FILTER, TEACHER_OFFSETS, loss_function
from mxm_kernels.losses.module import Loss
from mxm_kernels.ops.sigmoid_loss import sigmoid_loss
from mxm_kernels.ops.sigmoid_statistics import sigmoid_statistics

_NOT_TAKEN = (
    "teacher_image_features",
    "teacher_text_features",
    "teacher_logit_scale",
    "teacher_dtype",
    "soft_weight",
    "label_smoothing",
    "diagnostics",
    *TEACHER_OFFSETS,
    *FILTER,
)


def check_bias(logit_bias: object = 0.0) -> None:
    """The checks of the bias that need no features; NaN passes, and the loss shows it."""
    value = logit_bias
    if isinstance(logit_bias, Tensor):
        checks.check_dense("logit_bias", logit_bias)
        if logit_bias.numel() != 1 or logit_bias.ndim > 1:
            raise ValueError(
                f"logit_bias must be 0-d or of shape [1], got shape {tuple(logit_bias.shape)}"
            )
        if not logit_bias.dtype.is_floating_point:
            raise TypeError(f"logit_bias must be a floating-point tensor, got {logit_bias.dtype}")
        if not checks.can_look(logit_bias) or bool(logit_bias.isnan()):
            return
        value = float(logit_bias.detach())
    elif isinstance(logit_bias, bool) or not isinstance(logit_bias, Real):
        raise TypeError(f"logit_bias must be a number or a tensor, got {type(logit_bias).__name__}")
    if not abs(cast(float, value)) <= torch.finfo(torch.float32).max:
        raise ValueError(f"logit_bias must be finite, got {value}")


@loss_function(check_bias, not_taken=dict.fromkeys(_NOT_TAKEN, ""))
def fused_siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None = None,
    *,
    logit_scale: Scale,
    logit_bias: float | Tensor,
    **options: Unpack[Options],
) -> Tensor:
    """Sigmoid loss of SigLIP, with one or several positives for each row.

        l_i = sum_j softplus(-z_ij (S_ij + b)),    z_ij = 1 if j in Pos(i), else -1
        L   = (mean_i l_i + mean_j l'_j) / 2

    with S = s x y^T, Pos(i) the texts of the instance of image i, and l'_j the same for text j,
    from column j. For M = N this is the loss of arXiv 2303.15343, section 3.2, whatever
    ``image_to_text_weight`` is.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: which rows show the same instance, as in :func:`fused_mfh_loss`. None: row i of
            both sides is a pair, and all other rows are its negatives (M = N).
        logit_scale: s, as in :func:`fused_mfh_loss`.
        logit_bias: b, finite; a number, or a 0-d or [1] tensor, which receives its gradient.
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
    folds = (1, 1) if folds is None else folds
    batch = make_batch(image_features, text_features, folds, logit_scale, options)
    bias = as_0d_tensor("logit_bias", logit_bias, batch.x, batch.dtype)
    if isinstance(logit_bias, Tensor) and not checks.can_look(bias):
        # An infinite bias is NaN, as then the loss is.
        bias = torch.add(bias, bias.detach(), alpha=0)
    factors = row_factors(batch, of_every_row=True)
    if _is_one_pass(batch, factors):
        return _in_one_pass(batch, bias, factors)
    return reduced(batch, factors * _row_losses(batch, bias))


def _is_one_pass(b: Batch, factors: Tensor) -> bool:
    """Whether the weight of each term is constant and known before any similarity is."""
    alone = b.shard is None and b.options.reduction == "mean" and b.queues == (None, None)
    weights = (factors, *(b.options.pair_weights or ()))
    return alone and b.one_scale and not any(w.requires_grad for w in weights)


def _in_one_pass(b: Batch, bias: Tensor, factors: Tensor) -> Tensor:
    """The loss together with its gradients."""
    t, given = b.tables, b.options.pair_weights
    pairs = factors[:0]
    if given is not None:
        rows, cols = pair_weights.in_slots(t, given, b.dtype)
        of_texts = factors[t.images :][t.pair_texts]
        pairs = torch.addcmul(factors[t.pair_images] * rows, of_texts, cols)
    weights = SigmoidWeights(factors, pairs)
    return sigmoid_loss(b.x, b.y, b.scales[0], bias, t, weights, b.backend, b.rules)


def _row_losses(b: Batch, bias: Tensor) -> Tensor:
    """(R,) losses of the rows."""
    if b.one_scale:
        made = _run(b, b.x, b.y, b.scales[0], bias)
    else:
        made = with_row_scales(b, None, lambda x, y, _, one, __: _run(b, x, y, one, bias))
    terms = -logsigmoid(made.positives + bias)
    given = b.options.pair_weights
    if given is not None:
        weights = pair_weights.given_pair_weights(b.tables, given, b.dtype)
        terms = b.local_positives(weights) * terms
    losses = made.softplus_sum + segment_sum(terms, b.segments)
    if b.queues == (None, None):
        return losses
    return losses + torch.cat([_of_queue(b, side, bias) for side in (0, 1)])


def _run(b: Batch, x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> SigmoidStatistics:
    if b.shard is not None:
        return sigmoid_over_ranks(b.shard, x, y, scale, bias, b.backend, b.rules)
    return sigmoid_statistics(x, y, scale, bias, b.tables, b.backend, rules=b.rules)


def _of_queue(b: Batch, side: int, bias: Tensor) -> Tensor:
    """(rows,) sums over the negatives that a queue brings to the rows of one side."""
    x, s, queue = (b.x, b.y)[side], b.scales[side], b.queues[side]
    if queue is None:
        return x.new_zeros(len(x), dtype=b.dtype)
    if s.ndim:
        x, s = scaled(x, s), b.x.new_ones((), dtype=b.dtype)
    rules = rules_with_queue(b, side, queue)
    made = sigmoid_statistics(x, queue.features, s, bias, queue.tables, b.backend, rules=rules)
    return made.softplus_sum[: len(x)]


class SigLipLoss(Loss):
    """:func:`fused_siglip_loss` as a module, with its hyper-parameters fixed.

    Args:
        **options: see :class:`HyperParameters`; without ``soft_weight``, ``label_smoothing`` and
            ``teacher_dtype``.

    Example:
        >>> import torch
        >>> from mxm_kernels import SigLipLoss
        >>> x = torch.eye(4)
        >>> bool(SigLipLoss()(x, x, logit_scale=20.0, logit_bias=-10.0) < 1e-3)
        True
    """

    function = staticmethod(fused_siglip_loss)

    def __init__(self, **options: Unpack[HyperParameters]) -> None:
        super().__init__({}, options)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        folds: FoldsLike | None = None,
        *,
        logit_scale: Scale,
        logit_bias: float | Tensor,
        **inputs: Unpack[Inputs],
    ) -> Tensor:
        """Shapes, options and errors as in the function."""
        return self._run(
            image_features,
            text_features,
            folds,
            logit_scale=logit_scale,
            logit_bias=logit_bias,
            **inputs,
        )
