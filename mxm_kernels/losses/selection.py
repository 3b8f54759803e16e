"""The weights of the positives in the hard loss: drawn at random, given, or in expectation."""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels import checks
from mxm_kernels.core import pair_weights
from mxm_kernels.core.batch import Batch, resolve_folds
from mxm_kernels.core.features import autocast
from mxm_kernels.core.options import FoldsLike, Options
from mxm_kernels.folds.tables import FoldTables


def draw_selection(
    folds: FoldsLike,
    image_features: Tensor,
    text_features: Tensor,
    *,
    rounds: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw the positives that :func:`fused_mfh_loss` would draw from ``generator``.

    In each round every row gets one of its positives, uniformly; a positive may come again in
    another round. Images and texts are drawn independently. Use it to hold a draw fixed, or to
    draw outside of a function that torch.compile compiles: it cannot trace a generator.

    Args:
        folds: which rows show the same instance, as in :func:`fused_mfh_loss`.
        image_features: (M, D); only its number of rows and its device are used.
        text_features: (N, D), same dtype and device.
        rounds: R >= 1, how often each row draws.
        generator: source of the draw, as in :func:`fused_mfh_loss`.

    Returns:
        (image_to_text (R, M), text_to_image (R, N)), int64. An entry is the drawn positive of a
        row, as the index of a row of the other modality; -1 for a row without a positive.

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
    places = pair_weights.draw_places(tables, rounds, generator)
    slots, crossed = places[:, : tables.images], places[:, tables.images :]
    texts = tables.pair_texts[slots]
    images = tables.pair_images[tables.text_slots[crossed.clamp(min=tables.pairs) - tables.pairs]]
    return torch.where(slots < 0, -1, texts), torch.where(crossed < 0, -1, images)


def draws(rounds: int | None, selection: object, options: Options) -> bool:
    """Whether :func:`weights_of` draws."""
    return rounds is not None and selection is None and options.get("pair_weights") is None


def weights_of(batch: Batch, rounds: int | None, selection: tuple[Tensor, Tensor] | None) -> Tensor:
    """(L,) weight of each positive of a row: drawn, given or expected."""

    def own(tables: FoldTables, dtype: torch.dtype) -> Tensor:
        if selection is not None:
            return pair_weights.selected_weights(tables, selection, dtype)
        if rounds is None:
            return pair_weights.expected_weights(tables, dtype)
        segments, positives = tables.segments, 2 * tables.pairs
        return pair_weights.drawn_weights(batch, segments, positives, int(rounds))

    return pair_weights.local_weights(batch, own)
