"""The rows of the table: which loss, on what."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mxm_kernels import (
    Folds,
    fold_mean,
    fused_hard_loss,
    fused_info_nce_loss,
    fused_soft_loss,
    fused_supcon_loss,
)
from mxm_kernels.data import MultifoldBatch

Aggregate = Literal["", "images", "texts"]


@dataclass(frozen=True)
class Row:
    """A way to train the heads.

    Args:
        name: as the table shows it.
        loss: "group" (CLIP on the group matrix), "masked" (the same, other positives masked),
            "all" (every positive), "soft" (the teacher alone) or "hard" (random selection).
        rounds: of the random selection; None is their expectation, "m" the mean number of
            captions of an instance.
        soft: mix in the soft loss against a momentum teacher.
        aggregate: the side whose features are averaged over each instance, before the loss and
            in retrieval.
        pairs: draw one image and one caption of each instance, as CLIP is trained; None, or how
            many there are in a batch and for how long: see `experiment.py`.

    """

    name: str
    loss: Literal["group", "masked", "all", "soft", "hard"]
    rounds: int | Literal["m"] | None = None
    soft: bool = False
    aggregate: Aggregate = ""
    pairs: Literal["", "equal instances", "equal rows", "equal time"] = ""

    @property
    def has_teacher(self) -> bool:
        """Whether a momentum teacher is trained along."""
        return self.soft or self.loss == "soft"


def hard_rows(aggregate: Aggregate = "") -> list[Row]:
    """Random selection with 1, m, 10 and infinitely many rounds, each without and with soft."""
    rounds: tuple[tuple[str, int | Literal["m"] | None], ...] = (
        ("1", 1),
        ("m", "m"),
        ("10", 10),
        ("expectation", None),
    )
    return [
        Row(f"Hard ({name}){' + Soft' if soft else ''}", "hard", count, soft, aggregate)
        for name, count in rounds
        for soft in (False, True)
    ]


def variation(aggregate: Aggregate) -> list[Row]:
    """The rows that are repeated with one side aggregated."""
    return [
        Row("CLIP, masked", "masked", aggregate=aggregate),
        Row("All", "all", aggregate=aggregate),
        Row("Hard (10)", "hard", 10, aggregate=aggregate),
        Row("Hard (10) + Soft", "hard", 10, soft=True, aggregate=aggregate),
    ]


TABLE_5 = [
    Row("CLIP on the group matrix", "group"),
    Row("CLIP, masked", "masked"),
    Row("All", "all"),
    Row("Soft", "soft"),
    *hard_rows(),
]
CONTROLS = [
    Row("CLIP on pairs", "masked", pairs="equal instances"),
    Row("CLIP on pairs, equal rows", "masked", pairs="equal rows"),
    Row("CLIP on pairs, equal time", "masked", pairs="equal time"),
]
ROWS = [*TABLE_5, *CONTROLS, *variation("images"), *variation("texts")]


def aggregated(
    row: Row, images: Tensor, texts: Tensor, image_ids: Tensor, text_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and ids after the aggregation of a row: its mean feature for each instance."""
    if row.aggregate == "images":
        images, image_ids = fold_mean(images, image_ids)
    if row.aggregate == "texts":
        texts, text_ids = fold_mean(texts, text_ids)
    return images, texts, image_ids, text_ids


def loss_of(
    row: Row,
    batch: MultifoldBatch,
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor] | None,
    logit_scale: Tensor,
    soft_weight: float,
    rounds: int | None,
    generator: torch.Generator,
) -> Tensor:
    """Loss of a row from the features (M, D) and (N, D) of a batch.

    `rounds` is the row's with "m" filled in.
    """
    ids = batch.image_ids, batch.text_ids
    x, y, *new_ids = aggregated(row, *student, *ids)
    folds = Folds.from_ids(*new_ids) if row.aggregate else batch.folds
    options: dict[str, Any] = {}
    if teacher is not None:
        a, b, *_ = aggregated(row, *teacher, *ids)
        options = {"teacher_image_features": a, "teacher_text_features": b}
    if row.loss == "soft":
        return fused_soft_loss(x, y, folds, logit_scale=logit_scale, **options)
    if row.soft:
        options["soft_weight"] = soft_weight
    if row.loss == "all":
        return fused_supcon_loss(x, y, folds, logit_scale=logit_scale, **options)
    if row.loss == "hard":
        options.update(rounds=rounds, generator=generator)
        return fused_hard_loss(x, y, folds, logit_scale=logit_scale, **options)
    masked = row.loss == "masked"
    return fused_info_nce_loss(
        x, y, folds, logit_scale=logit_scale, mask_false_negatives=masked, **options
    )
