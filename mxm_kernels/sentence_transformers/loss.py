"""MultifoldLoss, a loss for the trainer of sentence-transformers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mxm_kernels.checks import check_flag, check_positive
from mxm_kernels.distributed.ranks import Ranks, SharedErrors, default_group
from mxm_kernels.losses import MFHLoss
from mxm_kernels.sentence_transformers.cached import cached_loss, check_mini_batches
from mxm_kernels.sentence_transformers.columns import (
    check_positives,
    count_positives,
    embedded,
    folds_of,
)
from mxm_kernels.sentence_transformers.options import (
    checked,
    described,
    directed,
    directions_of,
    with_options,
)

_CITATION = """
@misc{wang2023mxmclr,
    title={MXM-CLR: A Unified Framework for Contrastive Learning of Multifold Cross-Modal Representations},
    author={Ye Wang and Bowei Jiang and Changqing Zou and Rui Ma},
    year={2023},
    eprint={2303.10839},
    archivePrefix={arXiv},
}
"""  # noqa: E501


class MultifoldLoss(nn.Module):
    """A loss of this package over the columns (anchor, positive, ..., negative, ...).

    The columns of a batch have B rows each. The first column has the anchors. The next
    ``positives`` columns have the positives of the anchor in their row. All columns after them
    have hard negatives, which are negatives of every anchor in the batch. A label column of
    integers says which rows are of the same instance: they are positives of each other. Without
    it each row is an instance of its own. Embeddings are normalised here.

    With one positive column and the loss ``InfoNCELoss()`` or ``MFHLoss()`` this is
    MultipleNegativesRankingLoss of sentence-transformers, in value and gradients. The defaults
    differ: MultipleNegativesRankingLoss compares anchors with texts alone, which is
    ``directions=("query_to_doc",)`` here. MultifoldLoss compares texts with anchors too.

    Args:
        model: the SentenceTransformer that is trained.
        loss: a module that takes folds, such as ``MFHLoss()`` (the default), ``SupConLoss()`` or
            ``InfoNCELoss()``.
        scale: 1 / temperature.
        positives: how many columns after the anchors are positives, or "all". 1 by default; a
            batch of more than two columns then gets one warning.
        directions: ``("query_to_doc",)`` compares each anchor with all texts.
            ``("query_to_doc", "doc_to_query")`` compares each positive with all anchors too, and
            needs ``partition_mode="per_direction"``. By default both count, weighted by
            ``image_to_text_weight`` of ``loss``, or by half where it has none.
        partition_mode: "per_direction": a softmax for each direction, and their mean. "joint",
            one softmax, is the same for one direction, and not built for both.
        gather_across_devices: compare the rows of all processes of torch.distributed's default
            group, which is looked up at each call. The value is the loss of the whole batch on
            every process. Another group is given to ``loss`` as ``process_group`` instead.
        mini_batch_size: most rows of a column that the model embeds at once, or None for all.
            Gradients are those of the whole batch; the model runs forward twice. Needs
            sentence-transformers 5.7 or newer.

    Raises:
        TypeError: ``loss`` is no module that takes folds (``SigLipLoss`` and ``CWCLLoss`` need
            other arguments); an argument is of another type; ``directions`` or
            ``gather_across_devices`` say what ``loss`` says too. From the call: labels that are
            not integers.
        ValueError: an argument is not as described. From the call: fewer columns than
            ``positives`` and the anchors, or not one label for each row.
        ImportError: ``mini_batch_size`` without a sentence-transformers that has its mixin.

    Example:
        >>> import torch
        >>> from mxm_kernels import MFHLoss
        >>> from mxm_kernels.sentence_transformers import MultifoldLoss
        >>> model = lambda column: {"sentence_embedding": column["rows"]}
        >>> columns = [{"rows": torch.eye(4)}] * 3  # an anchor and two positives a row
        >>> loss = MultifoldLoss(model, MFHLoss(rounds=None), positives=2)
        >>> loss(columns) < 1e-6
        tensor(True)
    """

    def __init__(
        self,
        model: Any,
        loss: nn.Module | None = None,
        scale: float = 20.0,
        *,
        positives: int | Literal["all"] | None = None,
        directions: tuple[str, ...] | None = None,
        partition_mode: Literal["joint", "per_direction"] | None = None,
        gather_across_devices: bool = False,
        mini_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        check_positives(positives)
        check_flag("gather_across_devices", gather_across_devices)
        if mini_batch_size is not None:
            check_mini_batches(mini_batch_size, model)
        self.model = model
        self.loss = directed(
            MFHLoss() if loss is None else checked(loss), directions, partition_mode
        )
        if gather_across_devices:  # refuses a loss with a group of its own
            with_options(self.loss, "gather_across_devices", process_group=None)
        self.scale = _as_scale(scale)
        self.positives = positives
        self.gather_across_devices = gather_across_devices
        self.mini_batch_size = mini_batch_size
        self._told: set[str] = set()

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor:
        """Loss of a batch of B rows, a 0-d tensor; labels (B,) integers or None."""
        columns = list(sentence_features)
        if self.mini_batch_size is None:
            return self.compute_loss_from_embeddings(embedded(self.model, columns), labels)
        return cached_loss(self, columns, labels)

    def compute_loss_from_embeddings(
        self, embeddings: list[Tensor], labels: Tensor | None = None
    ) -> Tensor:
        """The same from the embeddings (B, D) of each column, the anchors first."""
        loss = self._over_devices()
        group = getattr(loss, "hyper_parameters", {}).get("process_group")
        with SharedErrors(group):
            positives = count_positives(self.positives, len(embeddings))
            self._tell_of_negatives(len(embeddings))
            rank = 0 if group is None else Ranks(group).rank
            folds = folds_of(embeddings, positives, labels, rank)
        anchors, texts = embeddings[0], torch.cat(embeddings[1:])
        return loss(
            normalize(anchors, dim=1), normalize(texts, dim=1), folds, logit_scale=self.scale
        )

    def calculate_loss(
        self,
        reps: list[list[Tensor]],
        labels: Tensor | None = None,
        *,
        with_backward: bool = False,
    ) -> Tensor:
        """The same from the mini-batches of each column; the library's cache calls it."""
        loss = self.compute_loss_from_embeddings([torch.cat(parts) for parts in reps], labels)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss

    @property
    def uses_gradient_cache(self) -> bool:
        """Whether there are mini-batches; MatryoshkaLoss asks."""
        return self.mini_batch_size is not None

    @property
    def requires_media_counts(self) -> bool:
        """The same question, from the trainers of 5.7 and 6.0: images are cut with their texts."""
        return self.uses_gradient_cache

    def get_config_dict(self) -> dict[str, Any]:
        """What the trainer writes into the model card."""
        return {
            "loss": described(self.loss),
            "scale": self.scale,
            "positives": 1 if self.positives is None else self.positives,
            "directions": directions_of(self.loss),
            "partition_mode": "per_direction",
            "gather_across_devices": self.gather_across_devices,
            "mini_batch_size": self.mini_batch_size,
        }

    @property
    def citation(self) -> str:
        """BibTeX of MXM-CLR, which the trainer writes into the model card."""
        return _CITATION

    def _over_devices(self) -> nn.Module:
        """The loss over the default group, where that is asked for and there is one."""
        group = default_group() if self.gather_across_devices else None
        if group is not None:
            return with_options(self.loss, "gather_across_devices", process_group=group)
        if self.gather_across_devices:
            self._tell(
                "alone",
                "gather_across_devices=True, and torch.distributed has no process group: the loss "
                "has the rows of this process alone. Leave it out where there is one process",
            )
        return self.loss

    def _tell_of_negatives(self, columns: int) -> None:
        if self.positives is None and columns > 2:
            self._tell(
                "negatives",
                f"{columns} columns, and positives was not given: the second column has the "
                "positives of the anchors, and every column after it has negatives, as in "
                "MultipleNegativesRankingLoss. MultifoldLoss took them all as positives before. "
                "Write positives=1 to keep this, or positives='all' if every column has positives",
            )

    def _tell(self, subject: str, message: str) -> None:
        """Warn, once of each subject."""
        if subject not in self._told:
            self._told.add(subject)
            warnings.warn(f"MultifoldLoss: {message}", stacklevel=2)


def _as_scale(scale: object) -> float:
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"scale must be a number, got {type(scale).__name__}")
    check_positive("scale", float(scale))
    return float(scale)
