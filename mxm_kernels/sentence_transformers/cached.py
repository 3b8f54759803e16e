"""Mini-batches: the columns embedded in parts, by the gradient cache of sentence-transformers."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from mxm_kernels.checks import as_count

if TYPE_CHECKING:
    from mxm_kernels.sentence_transformers.loss import MultifoldLoss


def check_mini_batches(mini_batch_size: object, model: object) -> None:
    """That the library has its gradient cache, and that the model's inputs can be cut.

    Raises:
        TypeError, ValueError: the size is no number of rows; the model begins with a
            StaticEmbedding, whose inputs are one list of tokens.
        ImportError: the installed version has no such cache.
    """
    as_count("mini_batch_size", mini_batch_size)
    has_static_embedding_input = _library().has_static_embedding_input
    if isinstance(model, nn.Sequential) and has_static_embedding_input(model):
        raise ValueError(
            "mini_batch_size cannot cut the inputs of a StaticEmbedding, which are one list of "
            "tokens for all texts: leave it out"
        )


def cached_loss(loss: MultifoldLoss, columns: list[Any], labels: Tensor | None) -> Tensor:
    """The loss of a batch, whose backward pass embeds each mini-batch again.

    What the library's mixin reads is set for this call alone: the trainer exchanges the model of
    a loss, MatryoshkaLoss its ``calculate_loss``.
    """
    cache = _library().CachedLossMixin()
    cache.model = loss.model
    cache.mini_batch_size = loss.mini_batch_size
    cache.calculate_loss = loss.calculate_loss
    return cache.forward_cached(columns, labels)


def _library() -> Any:
    try:
        from sentence_transformers.base import losses
        from sentence_transformers.base.losses import CachedLossMixin  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "mini_batch_size needs sentence-transformers 5.7 or newer, which has CachedLossMixin, "
            f"got {_installed()}"
        ) from error
    return losses


def _installed() -> str:
    try:
        return version("sentence-transformers")
    except PackageNotFoundError:
        return "none"
