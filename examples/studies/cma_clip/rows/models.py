"""The models of the rows: CMA-CLIP with parts exchanged, so that all are trained by one program."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from examples.studies.cma_clip.config import Config
from examples.studies.cma_clip.experiment import build_model
from examples.studies.cma_clip.model import CMAClip
from examples.studies.cma_clip.tokens import Tokens

from .plan import Row


class OneModality(nn.Module):
    """One modality's class token (B, width) in place of both: the other is not looked at.

    Args:
        projection: brings the encoder's class token to the width.
        modality: "image" or "text".

    """

    def __init__(self, projection: nn.Module, modality: str) -> None:
        super().__init__()
        self.projection, self.modality = projection, modality

    def forward(self, image: Tokens, text: Tokens) -> tuple[Tensor, Tensor]:
        """The class token of the modality, twice."""
        tokens = image if self.modality == "image" else text
        alone = self.projection(tokens.class_token)
        return alone, alone


class ImageFeature(nn.Module):
    """The image's normalised feature (B, D) by a linear map that starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.projection.weight)

    def forward(self, image: Tokens, text: Tokens) -> tuple[Tensor, Tensor]:
        """The image's feature, twice."""
        feature = normalize(self.projection(image.features), dim=-1)
        return feature, feature


class PromptHead(nn.Module):
    """Logits (B, C) of features (B, D): scaled cosines with a prompt feature (C, D) of each class.

    Args:
        prompts: normalised features.
        logit_scale: of the encoders; the head's own copy is trained.

    """

    prompts: Tensor

    def __init__(self, prompts: Tensor, logit_scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("prompts", prompts)
        self.log_scale = nn.Parameter(logit_scale.detach().clone().log())

    def forward(self, feature: Tensor) -> Tensor:
        """Compare."""
        return self.log_scale.exp() * feature @ self.prompts.mT


def build(
    row: Row, config: Config, dual: Any, counts: dict[str, int], prompts: dict[str, Tensor]
) -> CMAClip:
    """Model of a row.

    Args:
        row: which.
        config: its sizes and the seed of its initial weights.
        dual: aligned encoders.
        counts: classes of every task.
        prompts: normalised features (classes, D) of every task.

    """
    parts = replace(config, sequence_attention=row.sequence, modality_attention=row.modality)
    model = build_model(parts, dual, counts)
    if row.looks_at == "prompts":
        scale = model.encoders.logit_scale
        model.sequence = ImageFeature(next(iter(prompts.values())).shape[1])
        model.heads = nn.ModuleDict({t: PromptHead(p, scale) for t, p in prompts.items()})
    elif row.looks_at != "both":
        projection = getattr(model.sequence, row.looks_at)
        model.sequence = OneModality(projection, row.looks_at)
    return model


@torch.no_grad()
def prompt_features(features: Tensor, rows: dict[str, list[list[int]]]) -> dict[str, Tensor]:
    """Mean of each class's prompts, normalised: (classes, D) of every task; features (texts, D)."""
    return {
        task: normalize(features[torch.tensor(places)].mean(1), dim=-1)
        for task, places in rows.items()
    }
