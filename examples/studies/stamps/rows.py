"""The losses that are compared."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mxm_kernels import (
    Folds,
    fused_hard_loss,
    fused_info_nce_loss,
    fused_mfh_loss,
    fused_supcon_loss,
)

HARD_WEIGHT = 0.6
TEACHER_DECAY = 0.99
Features = tuple[Tensor, Tensor]  # of images (M, D) and of captions (N, D)


@dataclass(frozen=True)
class Row:
    """A loss, and the observations of an instance that it is given.

    Args:
        name: as tables and plot show it.
        loss: "masked" (CLIP, whose negatives are other instances' rows), "all" (every positive),
            "hard" (random selection) or "mfh" (random selection and a momentum teacher).
        rounds: of the random selection; None is their expectation.
        one_pair: one image and one caption of each instance, drawn anew in each step.

    """

    name: str
    loss: Literal["masked", "all", "hard", "mfh"]
    rounds: int | None = None
    one_pair: bool = False

    @property
    def has_teacher(self) -> bool:
        """Whether a momentum teacher is trained along."""
        return self.loss == "mfh"


ONE_PAIR = Row("CLIP on one pair", "masked", one_pair=True)
MASKED = Row("CLIP, masked", "masked")
ALL = Row("All", "all")
EXPECTATION = Row("Hard (expectation)", "hard")
MFH = Row("MFH", "mfh", rounds=10)
ROWS = [
    ONE_PAIR,
    MASKED,
    ALL,
    Row("Hard (1)", "hard", rounds=1),
    Row("Hard (10)", "hard", rounds=10),
    EXPECTATION,
    MFH,
]


def loss_of(
    row: Row,
    student: Features,
    teacher: Features | None,
    folds: Folds,
    scale: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Loss of a row from the features of a batch."""
    options: dict[str, Any] = {"logit_scale": scale}
    if row.loss == "all":
        return fused_supcon_loss(*student, folds, **options)
    if row.loss == "masked":
        return fused_info_nce_loss(*student, folds, mask_false_negatives=True, **options)
    options |= {"rounds": row.rounds, "generator": generator}
    if teacher is None:
        return fused_hard_loss(*student, folds, **options)
    images, texts = teacher
    return fused_mfh_loss(
        *student,
        folds,
        teacher_image_features=images,
        teacher_text_features=texts,
        hard_weight=HARD_WEIGHT,
        **options,
    )
