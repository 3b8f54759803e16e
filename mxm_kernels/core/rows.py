"""The list of rows: what the losses are computed from.

The M rows of S and the N rows of its transpose are one list of R = M + N rows, images first. A
loss is written once and runs once over the list. Options are data on the list: a queue is merged
into ``neg_lse``, label smoothing adds ``neg_sum``, a scale for each row joins the halves of two
runs of the operator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mxm_kernels.core.batch import Batch
from mxm_kernels.core.mean import reduced, row_factors
from mxm_kernels.folds.segments import (
    Segments,
    segment_logsumexp,
    segment_max,
    segment_sum,
    spread,
)
from mxm_kernels.folds.tables import FoldTables, kept_with_tables


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of S and of its transpose as one list, images first: R = M + N rows, L positives.

    :func:`contrastive_rows` makes it. A row belongs to one image or one text; its positives are
    the rows of the other modality that show the same instance. Over ranks these are the rows of
    this process, and M and N are its own numbers. A field that is None is not used by the call.
    ``neg_lse``, ``positives``, ``teacher_mean``, ``neg_sum`` and ``excluded_lse`` are
    differentiable, once. The numbers are float32, or float64 for float64 features.

    Attributes:
        neg_lse: (R,) n, log-sum-exp of S over the negatives of each row; -inf without one.
        positives: (L,) S of the positives, row after row; a positive pair is in it twice.
        teacher_mean: (R,) u, S averaged with the teacher's softmax over the whole row.
        segments: which positives belong to which row; see :meth:`sum` and :meth:`spread`.
        batch: the features and options that the rows were computed from.
        neg_sum: (R,) sum of S over the negatives, 0 without one; with ``label_smoothing``.
        excluded_lse: (R,) log-sum-exp of S over what is neither positive nor negative of the row,
            -inf where nothing is: pairs that ids or the filter remove, and a queue's rows of the
            same instance. A soft loss includes them. None without a teacher.
        counted_negatives: (R,) how many negatives are left of the batch's, where ids or the filter
            remove some; no gradient.
        queued_negatives: (R,) how many of a queue's rows are negatives of the row.
        label_smoothing: e in [0, 1).
        teacher_lse: (R,) log-sum-exp of the teacher's similarities over the row; no gradient.
        hardest: (R,) greatest S over the negatives, for diagnostics; no gradient.
        entropy: (R,) entropy of the teacher's softmax in nats, for diagnostics; no gradient.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize, softplus
        >>> from mxm_kernels import contrastive_rows, fused_info_nce_loss
        >>> x, y = normalize(torch.randn(8, 4)), normalize(torch.randn(8, 4))
        >>> rows = contrastive_rows(x, y, (1, 1), logit_scale=9.0)
        >>> loss = rows.mean(rows.sum(softplus(rows.spread(rows.neg_lse) - rows.positives)))
        >>> bool(torch.isclose(loss, fused_info_nce_loss(x, y, (1, 1), logit_scale=9.0)))
        True
    """

    neg_lse: Tensor
    positives: Tensor
    teacher_mean: Tensor | None
    segments: Segments
    batch: Batch
    neg_sum: Tensor | None = None
    excluded_lse: Tensor | None = None
    counted_negatives: Tensor | None = None
    queued_negatives: Tensor | None = None
    label_smoothing: float = 0.0
    teacher_lse: Tensor | None = None
    hardest: Tensor | None = None
    entropy: Tensor | None = None

    def halves(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) -> (M,), (N,): the part of the images and the part of the texts."""
        return self.batch.halves(rows)

    @property
    def logit_scale(self) -> Tensor:
        """s: () one scale, or (R,) a scale for each row."""
        b = self.batch
        return b.scales[0] if b.one_scale else torch.cat(b.scales)

    @property
    def counts(self) -> Tensor:
        """(R,) int64, number of positives of each row."""
        return self.segments.offsets.diff()

    @property
    def has_positive(self) -> Tensor:
        """(R,) whether a row has a positive."""
        return self.counts > 0

    @property
    def has_negative(self) -> Tensor:
        """(R,) whether a row has a negative; one whose n is NaN counts, so that it shows."""
        return self.neg_lse != -torch.inf

    @property
    def num_negatives(self) -> Tensor:
        """(R,) number of negatives of each row, as numbers of the dtype of the loss."""
        made = self.counted_negatives
        if made is None:
            made = self.batch.local_rows(_num_negatives(self.batch.tables, self.batch.dtype))
        return made if self.queued_negatives is None else made + self.queued_negatives

    def mean(self, losses: Tensor, *, of_every_row: bool = False) -> Tensor:
        """The loss, (), from the losses (R,) of the rows: l mean_images + (1 - l) mean_texts.

        l is ``image_to_text_weight``. A mean is over the rows of that side, on all ranks, that
        have a positive, or over all rows with ``of_every_row``. ``image_weights`` and
        ``text_weights`` are its weights. Every rank gets the loss of the whole batch, and DDP or
        FSDP average the gradients to those of one process. Where a number of the list is not
        finite, the loss and every gradient are NaN, even if the losses do not depend on it.
        """
        factors = row_factors(self.batch, of_every_row=of_every_row)
        return reduced(self.batch, losses * factors + self._fault)

    @property
    def _fault(self) -> Tensor:
        """(R,) 0, or NaN where a number of the row is not finite."""
        fault = self.neg_lse.masked_fill(~self.has_negative, 0) * 0 + self.sum(self.positives * 0)
        return fault if self.teacher_mean is None else fault + self.teacher_mean * 0

    def spread(self, rows: Tensor) -> Tensor:
        """(R,) -> (L,): every positive gets the value of its row."""
        return spread(rows, self.segments)

    def sum(self, positives: Tensor) -> Tensor:
        """(L,) -> (R,): sum over the positives of a row, 0 without one."""
        return segment_sum(positives, self.segments)

    def logsumexp(self, positives: Tensor) -> Tensor:
        """(L,) -> (R,): log-sum-exp over the positives of a row, -inf without one."""
        return segment_logsumexp(positives, self.segments)

    def max(self, positives: Tensor) -> Tensor:
        """(L,) -> (R,): greatest value of a row, -inf without one; no gradient."""
        return segment_max(positives.detach(), self.segments)


@kept_with_tables
def _num_negatives(tables: FoldTables, dtype: torch.dtype) -> Tensor:
    counts = tables.offsets.diff()
    columns = torch.full_like(counts, tables.texts)
    columns[tables.images :] = tables.images
    return (columns - counts).to(dtype)
