"""The rows of the table: which loss, on what."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from examples.data.multifold import Aggregate, aggregated
from mxm_kernels import (
    Folds,
    fused_hard_loss,
    fused_info_nce_loss,
    fused_intra_modal_loss,
    fused_self_distillation_loss,
    fused_soft_loss,
    fused_supcon_loss,
)
from mxm_kernels.data import MultifoldBatch

# Robust-XR raises its share of soft targets with the training; here from 0 to this, step by step.
LAST_SOFT_SHARE = 0.9


@dataclass(frozen=True)
class Row:
    """A way to train the heads.

    Args:
        name: as the table shows it.
        loss: "group" (CLIP on the group matrix), "masked" (the same, other positives masked),
            "all" (every positive), "soft" (the teacher alone), "hard" (random selection) or
            "distilled" (Robust-XR: a growing share of the rows has soft targets).
        rounds: of the random selection; None is their expectation, "m" the mean number of
            captions of an instance.
        soft: mix in the soft loss against a momentum teacher.
        aggregate: the sides whose features are averaged over each instance, before the loss and
            in retrieval.
        pairs: draw one image and one caption of each instance, as CLIP is trained; None, or how
            many there are in a batch and for how long: see `settings.py`.
        intra_modal: weight of the loss inside each modality, beside the loss across them.
        retrieval: the sides that are averaged in retrieval alone.

    """

    name: str
    loss: Literal["group", "masked", "all", "soft", "hard", "distilled"]
    rounds: int | Literal["m"] | None = None
    soft: bool = False
    aggregate: Aggregate = "none"
    pairs: Literal["", "equal instances", "equal rows", "equal time"] = ""
    intra_modal: float = 0.0
    retrieval: Aggregate = "none"

    @property
    def has_teacher(self) -> bool:
        """Whether a momentum teacher is trained along."""
        return self.soft or self.loss == "soft"

    @property
    def side(self) -> Aggregate:
        """The sides that retrieval averages: only rows with the same are compared."""
        return self.retrieval if self.aggregate == "none" else self.aggregate


def hard_rows() -> list[Row]:
    """Random selection with 1, m, 10 and infinitely many rounds, each without and with soft."""
    rounds: tuple[tuple[str, int | Literal["m"] | None], ...] = (
        ("1", 1),
        ("m", "m"),
        ("10", 10),
        ("expectation", None),
    )
    return [
        Row(f"Hard ({name}){' + Soft' if soft else ''}", "hard", count, soft)
        for name, count in rounds
        for soft in (False, True)
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
# Beside the paper's table: CLIP with momentum targets (ALBEF's), Robust-XR with its schedule, and
# the term inside each modality that the paper's conclusion proposes.
OTHERS = [
    Row("CLIP on pairs + Soft", "masked", soft=True, pairs="equal instances"),
    Row("Robust-XR on pairs", "distilled", pairs="equal instances"),
    Row("Hard (10) + Soft + intra-modal", "hard", 10, soft=True, intra_modal=0.2),
]
# With both sides averaged an instance has one positive: all losses of one positive are CLIP's.
BOTH = [
    Row("CLIP, masked", "masked", aggregate="both"),
    Row("CLIP + Soft", "masked", soft=True, aggregate="both"),
    Row("Hard (10) + Soft of all observations", "hard", 10, soft=True, retrieval="both"),
]
ROWS = [*TABLE_5, *CONTROLS, *OTHERS, *BOTH]


@dataclass(frozen=True)
class Step:
    """What the loss of a step depends on, beside its row and features.

    Args:
        logit_scale: 1 / temperature.
        soft_weight: weight of the soft loss, of rows that have one.
        rounds: those of the row, with "m" filled in.
        progress: the share of the training that is over, in [0, 1).
        generator: of the draws.

    """

    logit_scale: Tensor
    soft_weight: float
    rounds: int | None
    progress: float
    generator: torch.Generator


def loss_of(
    row: Row,
    batch: MultifoldBatch,
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor] | None,
    step: Step,
) -> Tensor:
    """Loss of a row from the features (M, D) and (N, D) of a batch."""
    ids = batch.image_ids, batch.text_ids
    x, y, *new_ids = aggregated(row.aggregate, *student, *ids)
    folds = Folds.from_ids(*new_ids) if row.aggregate != "none" else batch.folds
    options: dict[str, Any] = {"logit_scale": step.logit_scale}
    if row.loss in ("hard", "distilled"):
        options["generator"] = step.generator
    if teacher is not None:
        a, b, *_ = aggregated(row.aggregate, *teacher, *ids)
        options |= {"teacher_image_features": a, "teacher_text_features": b}
    if row.soft:
        options["soft_weight"] = step.soft_weight
    loss = across(row, (x, y), folds, options, step)
    if not row.intra_modal:
        return loss
    inside = [
        fused_intra_modal_loss(features, instances, logit_scale=step.logit_scale)
        for features, instances in zip((x, y), new_ids, strict=True)
    ]
    return loss + row.intra_modal * (inside[0] + inside[1]) / 2


def across(
    row: Row, features: tuple[Tensor, Tensor], folds: Folds, options: dict[str, Any], step: Step
) -> Tensor:
    """The loss across the modalities."""
    if row.loss == "soft":
        return fused_soft_loss(*features, folds, **options)
    if row.loss == "all":
        return fused_supcon_loss(*features, folds, **options)
    if row.loss == "hard":
        return fused_hard_loss(*features, folds, rounds=step.rounds, **options)
    if row.loss == "distilled":
        share = LAST_SOFT_SHARE * step.progress
        return fused_self_distillation_loss(*features, folds, soft_share=share, **options)
    masked = row.loss == "masked"
    return fused_info_nce_loss(*features, folds, mask_false_negatives=masked, **options)
