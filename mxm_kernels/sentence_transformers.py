"""A loss for the trainer of sentence-transformers: several positives for each anchor.

The trainer gives a loss the tokens of each column of the data set and, where there is one, its
label column. sentence-transformers is not imported here: the loss calls the model it is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mxm_kernels.distributed.ranks import Ranks, SharedErrors
from mxm_kernels.folds import Folds, as_ids
from mxm_kernels.losses import MFHLoss

__all__ = ["MultifoldLoss"]

_RANK = 1 << 40  # ids of rank r without labels start at r times this


class MultifoldLoss(nn.Module):
    """A loss of this package over (anchor, positive, positive, ...) columns.

    The first column has the anchors, every other one a positive of its row. A label column of
    integers says which rows are of the same instance; without it each row is one of its own.
    All other rows are negatives. Embeddings are normalised here.

    Args:
        model: the SentenceTransformer that is trained.
        loss: a module that takes folds, such as ``MFHLoss()`` (the default), ``SupConLoss()`` or
            ``InfoNCELoss()``. For several processes give it ``process_group``.
        scale: 1 / temperature.

    Raises:
        TypeError: ``loss`` is no module that takes folds (``SigLipLoss`` and ``CWCLLoss`` need
            other arguments). From the call: labels that are not integers.
        ValueError: from the call: fewer than two columns.

    Example:
        >>> import torch
        >>> from mxm_kernels import MFHLoss
        >>> from mxm_kernels.sentence_transformers import MultifoldLoss
        >>> model = lambda column: {"sentence_embedding": column["rows"]}
        >>> columns = [{"rows": torch.eye(4)}] * 3  # an anchor and two positives a row
        >>> MultifoldLoss(model, MFHLoss(rounds=None))(columns, labels=None) < 1e-6
        tensor(True)
    """

    def __init__(self, model: Any, loss: nn.Module | None = None, scale: float = 20.0) -> None:
        super().__init__()
        self.model = model
        self.loss = MFHLoss() if loss is None else _checked(loss)
        self.scale = scale

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor:
        """Loss of a batch of B rows; labels (B,) integers or None."""
        columns = [self.model(features)["sentence_embedding"] for features in sentence_features]
        group = getattr(self.loss, "hyper_parameters", {}).get("process_group")
        with SharedErrors(group):
            if len(columns) < 2:
                raise ValueError(
                    f"expected a column of anchors and one or more of positives, got {len(columns)}"
                )
            anchors, positives = columns[0], torch.cat(columns[1:])
            first = 0 if group is None else Ranks(group).rank * _RANK
            ids = torch.arange(first, first + len(anchors), device=anchors.device)
            ids = ids if labels is None else as_ids("labels", labels)
            folds = Folds.from_ids(ids, ids.repeat(len(columns) - 1))
        return self.loss(
            normalize(anchors, dim=1), normalize(positives, dim=1), folds, logit_scale=self.scale
        )

    def get_config_dict(self) -> dict[str, Any]:
        """What the trainer writes into the model card."""
        return {"loss": repr(self.loss), "scale": self.scale}


def _checked(loss: object) -> nn.Module:
    """A module that can be called as this one calls it."""
    if isinstance(loss, nn.Module):
        with suppress(TypeError):
            inspect.signature(loss.forward).bind(None, None, None, logit_scale=1.0)
            return loss
    raise TypeError(
        "loss must be a module that is called with features of both sides, folds and "
        f"logit_scale, as MFHLoss() is, got {type(loss).__name__}"
    )
