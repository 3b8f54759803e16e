"""Mini-batches: the columns embedded in parts, by the gradient cache of sentence-transformers.

Imported where ``mini_batch_size`` is given, since it needs that library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sentence_transformers.base.losses import CachedLossMixin, has_static_embedding_input
from torch import Tensor, nn

if TYPE_CHECKING:
    from mxm_kernels.sentence_transformers.loss import MultifoldLoss


class CachedColumns(CachedLossMixin):
    """A loss as the library's mixin reads it.

    Made for one call: the trainer exchanges the model of a loss, MatryoshkaLoss its
    ``calculate_loss``.
    """

    def __init__(self, loss: MultifoldLoss, mini_batch_size: int) -> None:
        self.loss = loss
        self.model = loss.model
        self.mini_batch_size = mini_batch_size

    def calculate_loss(
        self,
        reps: list[list[Tensor]],
        labels: Tensor | None = None,
        *,
        with_backward: bool = False,
    ) -> Tensor:
        """That of the loss."""
        return self.loss.calculate_loss(reps, labels, with_backward=with_backward)


def check_model(model: object) -> None:
    """That the model's inputs have a row for each text.

    Raises:
        ValueError: it begins with a StaticEmbedding, whose inputs are one list of tokens.
    """
    if isinstance(model, nn.Sequential) and has_static_embedding_input(model):
        raise ValueError(
            "mini_batch_size cannot cut the inputs of a StaticEmbedding, which are one list of "
            "tokens for all texts: leave it out"
        )
