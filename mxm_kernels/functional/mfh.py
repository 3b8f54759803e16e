"""The MFH loss of MXM-CLR and its two parts: hard (masked random selection) and soft."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from mxm_kernels import checks
from mxm_kernels.algebra import selection as draws
from mxm_kernels.algebra.autocast import autocast
from mxm_kernels.algebra.batch import Batch, make_batch, resolve_folds
from mxm_kernels.algebra.losses import masked_rows
from mxm_kernels.algebra.reduction import reduce
from mxm_kernels.options import (
    FoldsLike,
    Options,
    Resolved,
    Scale,
    check_fraction,
    check_not_taken,
    require_folds,
    resolve,
)
from mxm_kernels.parallel.distributed import SharedErrors

# The soft loss has the teacher's targets, and nothing else.
NOT_TAKEN = ("soft_weight", "label_smoothing", "pair_weights")


def fused_mfh_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike,
    *,
    logit_scale: Scale,
    hard_weight: float = 0.6,
    rounds: int | None = 10,
    generator: torch.Generator | None = None,
    selection: tuple[Tensor, Tensor] | None = None,
    **options: Unpack[Options],
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
            receives its gradient; or a pair of tensors ((M,), (N,)), a scale for each row of
            either side (individual temperatures), which costs the products twice.
        hard_weight: a, in [0, 1].
        rounds: R >= 1 random selections, or None for their exact expectation (no randomness,
            same cost).
        generator: source of the draw. A CPU generator draws the same on every backend and
            device; None uses the default generator of the features' device.
        selection: drawn positives instead of a draw: (image_to_text (R, M), text_to_image
            (R, N)), indices into the other modality, -1 for a row without a positive; see
            :func:`draw_selection`. ``rounds`` and ``generator`` are then not used. Checking it
            waits for a GPU.
        **options: see :class:`Options`. ``teacher_image_features`` (M, D') and
            ``teacher_text_features`` (N, D') bring in the soft loss (with ``hard_weight=1`` they
            are not read), ``teacher_logit_scale`` is their t.

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``; float32 (float64 for
        float64 features). Non-finite features give a non-finite loss.

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
    with SharedErrors(options.get("process_group")):
        check_hard(hard_weight, rounds)
        require_folds(folds)
        if "soft_weight" in options:
            raise TypeError("fused_mfh_loss takes hard_weight, which is 1 - soft_weight")
        o = resolve(options, reads_teacher=True)
        if not o.has_teacher and hard_weight == 0:
            raise ValueError(
                "hard_weight=0 is the soft loss alone, which needs teacher_image_features and "
                "teacher_text_features"
            )
        _check_draw(generator, selection, o)
    o = o._replace(soft_weight=1 - float(hard_weight) if o.has_teacher else 0.0)
    own = "mfh", rounds, selection
    batch = make_batch(
        image_features, text_features, folds, logit_scale, o, generator=generator, own=own
    )
    if hard_weight == 0:
        return reduce(batch, None, (None, None))
    return reduce(batch, masked_rows, _weights(batch, rounds, selection))


def fused_hard_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike,
    *,
    logit_scale: Scale,
    rounds: int | None = 10,
    generator: torch.Generator | None = None,
    selection: tuple[Tensor, Tensor] | None = None,
    **options: Unpack[Options],
) -> Tensor:
    """Hard relationship loss of MXM-CLR: InfoNCE with positives drawn at random, R rounds.

        h_i = sum_{k in Pos(i)} w_ik softplus(n_i - S_ik)

    (arXiv 2303.10839, equation 6): of each row one positive is drawn, the others are masked.
    ``rounds=None`` is the exact expectation, every positive weighing the same. It is
    :func:`fused_mfh_loss` without its soft part, which ``soft_weight`` brings back.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: which rows show the same instance, as in :func:`fused_mfh_loss`.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        rounds: R >= 1 random selections, or None for their exact expectation.
        generator: source of the draw, as in :func:`fused_mfh_loss`.
        selection: drawn positives instead of a draw, as in :func:`fused_mfh_loss`.
        **options: see :class:`Options`.

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from mxm_kernels import fused_hard_loss
        >>> images, texts = torch.eye(3), torch.eye(3)  # 3 instances, 1 view, 1 caption
        >>> loss = fused_hard_loss(images, texts, (1, 1), logit_scale=2.0, rounds=None)
        >>> bool(torch.isclose(loss, torch.log(1 + 2 * torch.exp(torch.tensor(-2.0)))))
        True
    """
    with SharedErrors(options.get("process_group")):
        check_hard(1.0, rounds)
        require_folds(folds)
        o = resolve(options)
        _check_draw(generator, selection, o)
    own = "hard", rounds, selection
    batch = make_batch(
        image_features, text_features, folds, logit_scale, o, generator=generator, own=own
    )
    return reduce(batch, masked_rows, _weights(batch, rounds, selection))


def fused_soft_loss(
    image_features: Tensor,
    text_features: Tensor,
    folds: FoldsLike | None = None,
    *,
    logit_scale: Scale,
    **options: Unpack[Options],
) -> Tensor:
    """Cross-entropy of each row against the teacher's softmax over the whole row.

        q_i = logsumexp_j S_ij - sum_j softmax_j(T_i.) S_ij

    (arXiv 2303.10839, equation 8; ALBEF, arXiv 2107.07651). Targets come from any similarity
    T_ij = t <a_i, b_j>: the momentum encoders' features, or those of one modality alone given
    as both a and b.

    Args:
        image_features: (M, D), L2-normalised.
        text_features: (N, D), same dtype and device.
        folds: ignored but for its checks: the loss does not depend on which rows show the
            same instance.
        logit_scale: s, as in :func:`fused_mfh_loss`.
        **options: see :class:`Options`; ``teacher_image_features`` (M, D') and
            ``teacher_text_features`` (N, D') are needed; ``soft_weight``, ``label_smoothing`` and
            ``pair_weights`` are not taken.

    Returns:
        A 0-d tensor, or the pair ((M,), (N,)) for ``reduction="none"``.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`fused_mfh_loss`.

    Example:
        >>> import torch
        >>> from mxm_kernels import fused_soft_loss
        >>> images, texts = torch.eye(4), torch.eye(4)
        >>> teacher = {"teacher_image_features": images, "teacher_text_features": texts}
        >>> fused_soft_loss(images, texts, (1, 1), logit_scale=5.0, **teacher) < 0.2
        tensor(True)
    """
    with SharedErrors(options.get("process_group")):
        check_not_taken("the soft loss", NOT_TAKEN, options)
        o = resolve(options, reads_teacher=True)
        if not o.has_teacher:
            raise ValueError("the soft loss needs teacher_image_features and teacher_text_features")
    o = o._replace(soft_weight=1.0)
    batch = make_batch(image_features, text_features, folds, logit_scale, o, own=("soft",))
    return reduce(batch, None, (None, None))


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

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> from mxm_kernels import draw_selection
        >>> to_text, to_image = draw_selection(
        ...     ([0, 1], [1, 0]), torch.ones(2, 4), torch.ones(2, 4), rounds=1
        ... )
        >>> to_text
        tensor([[1, 0]])
    """
    x, y = autocast(image_features), autocast(text_features)
    checks.check_features(x, y)
    checks.check_drawn_rounds(rounds)
    checks.check_draw(generator, None)
    tables = resolve_folds(folds, x, y)
    slots, places = draws.draw_places(tables, rounds, generator)
    texts, images = tables.pair_texts[slots], tables.pair_images[tables.text_slots[places]]
    return torch.where(slots < 0, -1, texts), torch.where(places < 0, -1, images)


def check_hard(hard_weight: object, rounds: object) -> None:
    """The hyper-parameters of the hard and the MFH loss."""
    check_fraction("hard_weight", hard_weight)
    checks.check_rounds(rounds)


def _check_draw(generator: object, selection: object, o: Resolved) -> None:
    checks.check_draw(generator, selection)
    if selection is not None and o.pair_weights is not None:
        raise TypeError("selection and pair_weights both say what was drawn: give one")


def _weights(
    batch: Batch, rounds: int | None, selection: tuple[Tensor, Tensor] | None
) -> draws.Weights:
    """How much each positive of a row weighs: drawn, given or expected."""
    tables, dtype, own = batch.tables, batch.dtype, batch.options.pair_weights
    if own is not None:
        weights = draws.own_weights(tables, own, dtype)
    elif selection is not None:
        weights = draws.given_weights(tables, selection, dtype)
    elif rounds is None:
        weights = draws.expected_weights(tables, dtype)
    else:
        weights = draws.drawn_weights(tables, int(rounds), batch.generator, dtype, batch.backend)
    return batch.own_pairs(weights)
