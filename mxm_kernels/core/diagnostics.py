"""Measurements of a training step beside its loss, from the same pass over S and T."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mxm_kernels.backends.row_interface import DiagnosedRows
from mxm_kernels.ops.diagnostics import diagnostic_sums

if TYPE_CHECKING:
    from mxm_kernels.core.rows import Rows


@dataclass(eq=False)
class Diagnostics:
    """Accuracy, similarities and the teacher's entropy of a batch, measured by the loss.

    Make one, pass it to a loss as ``diagnostics=``, and read its fields after the call: 0-d
    tensors without gradients, or None. They cost no further matrix product. Similarities are
    cosines: S divided by its scale. The rows of a queue count as negatives. A feature that is not
    finite makes every field NaN that reads its encoder's features, or its teacher's.

    Attributes:
        image_to_text_accuracy: share of the images with a positive whose most similar positive
            is above every negative, in [0, 1].
        text_to_image_accuracy: the same for texts.
        positive_similarity: mean similarity of the positive pairs.
        image_to_text_hardest_negative: mean over the images of the similarity of the most similar
            negative. Images without a negative are left out; NaN where none has one.
        text_to_image_hardest_negative: the same for texts.
        image_to_text_teacher_entropy: mean entropy of the teacher's targets of an image, in
            nats; None where no teacher was read.
        text_to_image_teacher_entropy: the same for texts.

    Example:
        >>> import torch
        >>> from mxm_kernels import Diagnostics, fused_info_nce_loss
        >>> seen = Diagnostics()
        >>> x = torch.eye(4)
        >>> loss = fused_info_nce_loss(x, x, logit_scale=9.0, diagnostics=seen)
        >>> float(seen.image_to_text_accuracy), float(seen.positive_similarity)
        (1.0, 1.0)
    """

    image_to_text_accuracy: Tensor | None = None
    text_to_image_accuracy: Tensor | None = None
    positive_similarity: Tensor | None = None
    image_to_text_hardest_negative: Tensor | None = None
    text_to_image_hardest_negative: Tensor | None = None
    image_to_text_teacher_entropy: Tensor | None = None
    text_to_image_teacher_entropy: Tensor | None = None

    def numbers(self) -> dict[str, float]:
        """Name and value of each field that was measured, for a logger; waits for a GPU."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: float(value) for name, value in values.items() if value is not None}

    def measure(self, rows: Rows) -> None:
        """Fill in every field from the list of rows, summed over the ranks."""
        with torch.no_grad():  # torch.compile traces no decorated method of an object made inside
            self._measure(rows)

    def _measure(self, rows: Rows) -> None:
        batch, tables, hardest = rows.batch, rows.batch.tables, rows.hardest
        assert hardest is not None
        diagnosed = DiagnosedRows(
            rows.neg_lse, rows.positives, hardest, rows.entropy, rows.logit_scale,
            rows.segments.offsets, len(batch.x),
        )  # fmt: skip
        sums, counts = batch.sum(diagnostic_sums(diagnosed, batch.backend)).unbind()
        for k, mean in enumerate((sums / counts).unbind()):
            setattr(self, fields(self)[k].name, mean)
        if not tables.images_with_positive:
            self.image_to_text_accuracy = None
        if not tables.texts_with_positive:
            self.text_to_image_accuracy = None
        if not tables.pairs:
            self.positive_similarity = None
        if rows.entropy is None:
            self.image_to_text_teacher_entropy = self.text_to_image_teacher_entropy = None
