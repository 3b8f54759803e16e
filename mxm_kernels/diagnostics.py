"""What a step can tell about training beside its loss, from the same pass over S and T."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mxm_kernels.algebra.direction import Direction


@dataclass(eq=False)
class Diagnostics:
    """Filled in by the loss that it is given to: 0-d tensors without gradients, or None.

    They cost no further matrix product. Similarities are cosines: S divided by its scale. With
    a queue its rows count as negatives.

    Attributes:
        image_to_text_accuracy: share of the images with a positive whose most similar positive
            is above every negative, in [0, 1].
        text_to_image_accuracy: the same for texts.
        positive_similarity: mean over the positive pairs.
        image_to_text_hardest_negative: mean over the images of the most similar negative,
            over those that have one; NaN where none has.
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
        """Name and value of each that was measured, for a logger; waits for a GPU."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: float(value) for name, value in values.items() if value is not None}

    @torch.no_grad()
    def measure(self, rows: Direction, cols: Direction, total: Callable[[Tensor], Tensor]) -> None:
        """Fill in every field from the two directions; ``total`` sums over the ranks."""
        self.image_to_text_accuracy = _accuracy(rows, total)
        self.text_to_image_accuracy = _accuracy(cols, total)
        similarity = rows.S / (rows.scale if rows.scale.ndim == 0 else rows.spread(rows.scale))
        self.positive_similarity = _mean(similarity, total) if rows.with_positive else None
        self.image_to_text_hardest_negative = _hardest_negative(rows, total)
        self.text_to_image_hardest_negative = _hardest_negative(cols, total)
        has_teacher = rows.u.numel() or cols.u.numel()
        self.image_to_text_teacher_entropy = _mean(rows.h, total) if has_teacher else None
        self.text_to_image_teacher_entropy = _mean(cols.h, total) if has_teacher else None


def _accuracy(d: Direction, total: Callable[[Tensor], Tensor]) -> Tensor | None:
    if d.with_positive == 0:
        return None
    # A row without a positive has -inf here, which is above nothing.
    return total((d.max(d.S) > d.m).sum()) / d.with_positive


def _mean(values: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
    both = total(torch.stack([values.sum(), values.new_tensor(len(values))]))
    return both[0] / both[1]


def _hardest_negative(d: Direction, total: Callable[[Tensor], Tensor]) -> Tensor:
    found = d.has_negative
    sums = torch.stack([(d.m / d.scale).masked_fill(~found, 0).sum(), found.sum().to(d.m.dtype)])
    sums = total(sums)
    return sums[0] / sums[1]
