"""Prototypes: views of an image are assigned to learned columns, as in DINO and in SwAV."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from docs.recipes.soft_targets import one_pair, whole_rows
from mxm_kernels import Options, contrastive_rows, fused_soft_loss


# --8<-- [start:dino]
def dino_loss(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    prototypes: Tensor,
    teacher_prototypes: Tensor,
    centre: Tensor,
    *,
    student_temperature: float | Tensor = 0.1,
    teacher_temperature: float = 0.04,
    **options: Unpack[Options],
) -> Tensor:
    """DINO of views (B, D), the teacher's first; ``centre`` (K,) is subtracted from its logits."""
    S, T = range(len(student_features)), range(len(teacher_features))
    students, teachers = zip(*[(v, t) for t in T for v in S if v != t], strict=True)
    options["teacher_image_features"] = torch.cat([teacher_features[t] for t in teachers])
    options["teacher_text_features"] = teacher_prototypes
    options["teacher_logit_scale"] = 1 / teacher_temperature
    options["teacher_text_offsets"] = -centre / teacher_temperature
    options["image_to_text_weight"] = 1.0
    x = torch.cat([student_features[v] for v in students])
    return fused_soft_loss(x, prototypes, logit_scale=1 / student_temperature, **options)


# --8<-- [end:dino]


# --8<-- [start:centre]
class Centre(nn.Module):
    """The moving mean (K,) of the teacher's logits <x', c'_k>, without the logits."""

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.value: Tensor
        self.register_buffer("value", torch.zeros(prototypes))

    @torch.no_grad()
    def update(self, teacher_features: Sequence[Tensor], teacher_prototypes: Tensor) -> None:
        """After a step; over ranks give the mean over all of them as ``teacher_features``."""
        mean = torch.cat(list(teacher_features)).mean(0, dtype=self.value.dtype)
        self.value.lerp_(teacher_prototypes.to(mean.dtype) @ mean, 1 - self.momentum)


# --8<-- [end:centre]


# --8<-- [start:sinkhorn]
@torch.no_grad()
def sinkhorn(
    features: Tensor,
    prototypes: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    **options: Unpack[Options],
) -> Tensor:
    """(K,) offsets f: softmax_k(<x_i, c_k> / epsilon + f_k) are the codes of x_i."""
    wide = torch.promote_types(features.dtype, torch.float32)
    f, g = (t.new_zeros(len(t), dtype=wide) for t in (prototypes, features))
    for step in range(2 * iterations - 1):
        options["image_offsets"], options["text_offsets"] = g, f
        folds = one_pair(features, prototypes)
        rows = contrastive_rows(features, prototypes, folds, logit_scale=1 / epsilon, **options)
        of_images, of_prototypes = rows.halves(whole_rows(rows))
        if step % 2:
            g = g - of_images  # the codes of an image have sum 1
        else:
            f = f - of_prototypes  # the codes on a prototype have sum 1, as on any other
    return f


# --8<-- [end:sinkhorn]


# --8<-- [start:swav]
def swav_loss(
    features: Sequence[Tensor],
    prototypes: Tensor,
    offsets: Sequence[Tensor],
    *,
    temperature: float | Tensor = 0.1,
    epsilon: float = 0.05,
    **options: Unpack[Options],
) -> Tensor:
    """SwAV of views (B, D): the first ones have ``offsets`` of :func:`sinkhorn`, one for each."""
    losses = []
    for i, f in enumerate(offsets):
        others = [view for k, view in enumerate(features) if k != i]
        options["teacher_image_features"] = features[i].repeat(len(others), 1)
        options["teacher_text_features"], options["teacher_text_offsets"] = prototypes, f
        options["teacher_logit_scale"], options["image_to_text_weight"] = 1 / epsilon, 1.0
        x, s = torch.cat(others), 1 / temperature
        losses.append(fused_soft_loss(x, prototypes, logit_scale=s, **options))
    return torch.stack(losses).mean()


# --8<-- [end:swav]
