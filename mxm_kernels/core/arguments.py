"""The tensor arguments of the losses: each is read, cast and checked here, once."""

from __future__ import annotations

from numbers import Real
from typing import NamedTuple, cast

import torch
from torch import Tensor

from mxm_kernels import checks
from mxm_kernels.backends.interface import PairRules
from mxm_kernels.core.features import as_features, as_saved, refuse_transforms
from mxm_kernels.core.options import Resolved, Scale
from mxm_kernels.core.queues import QueuedRows, as_queued, check_rules_of_queue
from mxm_kernels.core.rules import read_rules
from mxm_kernels.core.symbols import is_symbol
from mxm_kernels.core.vectors import as_row_vector, as_row_weights, check_teacher_rows

Teacher = tuple[Tensor, Tensor]


class Arguments(NamedTuple):
    """The tensors of one call, checked and in the dtypes in which they are used."""

    x: Tensor  # (M, D)
    y: Tensor  # (N, D)
    teacher: Teacher | None  # (M, D'), (N, D'), detached
    scales: tuple[Tensor, Tensor]  # () both the same tensor, or (M,) and (N,)
    teacher_scales: tuple[Tensor, Tensor]  # alike, detached
    queues: tuple[QueuedRows | None, QueuedRows | None]  # what the images see, what the texts see
    row_weights: tuple[Tensor | None, Tensor | None]  # (M,), (N,) not negative, or NaN
    soft_weights: tuple[Tensor, Tensor] | None  # (M,), (N,), where soft_weight is a pair
    rules: PairRules  # of this process's rows, the thresholds in the teacher's similarities
    dtype: torch.dtype  # of the loss


def read(
    image_features: Tensor, text_features: Tensor, logit_scale: Scale, o: Resolved
) -> Arguments:
    """Check the tensors of a call.

    Raises:
        TypeError, ValueError: one is not as described.
        RuntimeError: a feature carries a derivative that is not in reverse.
    """
    refuse_transforms(
        image_features,
        text_features,
        *(logit_scale if isinstance(logit_scale, (tuple, list)) else (logit_scale,)),
    )
    x, y = as_features(image_features), as_features(text_features)
    checks.check_features(x, y, may_be_empty=o.process_group is not None)
    taught = as_features(o.teacher_image_features), as_features(o.teacher_text_features)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    for name, queue in (("text_queue", o.text_queue), ("image_queue", o.image_queue)):
        check_rules_of_queue(name, queue, o, taught=taught[0] is not None)
    scales = _scales(logit_scale, x, y, dtype)
    return Arguments(
        x,
        y,
        _teacher(x, y, *taught),
        scales,
        _teacher_scales(o.teacher_logit_scale, scales, x, dtype),
        (
            as_queued("text_queue", o.text_queue, x, "image_features"),
            as_queued("image_queue", o.image_queue, y, "text_features"),
        ),
        (
            as_row_weights("image_weights", o.image_weights, x, dtype),
            as_row_weights("text_weights", o.text_weights, y, dtype),
        ),
        _soft_weights(o.soft_weight, x, y, dtype),
        read_rules(o, x, y, dtype),
        dtype,
    )


def _teacher(x: Tensor, y: Tensor, teacher_image: object, teacher_text: object) -> Teacher | None:
    """Both teacher tensors, with the rows, dtype and device of the student's, or neither."""
    if teacher_image is None and teacher_text is None:
        return None
    named = (
        ("teacher_image_features", teacher_image, "image_features", x),
        ("teacher_text_features", teacher_text, "text_features", y),
    )
    for name, teacher, _, _ in named:
        if teacher is None:
            raise ValueError(
                "teacher_image_features and teacher_text_features go together, "
                f"got {name}=None beside the other"
            )
    first, second = check_teacher_rows(*named[0]), check_teacher_rows(*named[1])
    if first.shape[1] != second.shape[1] or first.shape[1] == 0:
        raise ValueError(
            "teacher_image_features and teacher_text_features must have the same dimension D "
            f">= 1, got {first.shape[1]} and {second.shape[1]}"
        )
    return first.detach(), second.detach()


def as_scale(name: str, scale: object, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A positive scale as a 0-d tensor of ``dtype`` beside ``like``; a tensor keeps its graph.

    A number or a CPU tensor that is not positive is an error. Looking at a GPU tensor would
    make the step wait for the GPU, so there the operators make the loss NaN.
    """
    if isinstance(scale, Tensor):
        checks.check_dense(name, scale)
        if scale.numel() != 1 or scale.ndim > 1:
            raise ValueError(f"{name} must be 0-d or of shape [1], got shape {tuple(scale.shape)}")
        if not scale.dtype.is_floating_point:
            raise TypeError(f"{name} must be a floating-point tensor, got {scale.dtype}")
    elif isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"{name} must be a number or a tensor, got {type(scale).__name__}")
    given = cast("float | Tensor", scale)
    if not isinstance(given, Tensor):
        checks.check_positive(name, given)  # an integer may be too large for a float
    made = as_0d_tensor(name, given, like, dtype)
    if isinstance(given, Tensor) and checks.can_look(given):
        value = float(given.detach())
        if value == value:  # NaN passes: it came from training, and the loss shows it
            checks.check_positive(name, value)
    return made


def as_0d_tensor(name: str, value: float | Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A number, or a 0-d or [1] tensor, as a 0-d tensor of ``dtype`` beside ``like``."""
    if not isinstance(value, Tensor):
        number = float(value)
        if is_symbol(number):
            return torch.ones((), dtype=dtype, device=like.device) * number
        return torch.full((), number, dtype=dtype, device=like.device)
    if value.device != like.device:
        raise ValueError(
            f"{name} must be on the device of image_features, {like.device}, got {value.device}"
        )
    return as_saved(value).reshape(()).to(dtype)


def _scales(logit_scale: Scale, x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One scale for both directions (the same tensor twice), or one for each row and column."""
    if not isinstance(logit_scale, (tuple, list)):
        s = as_scale("logit_scale", logit_scale, x, dtype)
        return s, s
    if len(logit_scale) != 2:
        raise TypeError(
            "logit_scale must be a number, a tensor or a pair of tensors ((M,), (N,)), "
            f"got {len(logit_scale)} values"
        )
    rows, cols = (
        _positive(f"logit_scale[{k}]", as_row_vector(f"logit_scale[{k}]", value, rows, dtype))
        for k, (value, rows) in enumerate(zip(logit_scale, (x, y), strict=True))
    )
    return rows, cols


def _positive(name: str, scales: Tensor) -> Tensor:
    """Scales that are positive and finite, or NaN; on a GPU, as in :func:`as_scale`, any."""
    if checks.can_look(scales) and scales.numel():
        for end in torch.aminmax(scales.detach().nan_to_num(1.0, torch.inf, -torch.inf)):
            checks.check_positive(name, float(end))
    return scales


def _teacher_scales(
    given: object, scales: tuple[Tensor, Tensor], x: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The scale that was given, else those of the student, detached."""
    if given is not None:
        t = as_scale("teacher_logit_scale", given, x, dtype).detach()
        return t, t
    first = scales[0].detach()
    return first, first if scales[0] is scales[1] else scales[1].detach()


def _soft_weights(
    value: object, x: Tensor, y: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """A pair of vectors of numbers in [0, 1]; on a GPU, which is not waited for, NaN elsewhere."""
    if not isinstance(value, (tuple, list)):
        return None
    vectors = []
    for k, (given, rows) in enumerate(zip(value, (x, y), strict=True)):
        name = f"soft_weight[{k}]"
        vector = as_row_vector(name, given, rows, dtype)
        is_share = (vector >= 0) & (vector <= 1)
        if checks.can_look(vector) and not bool(is_share.all()):
            wrong = float(vector.detach()[~is_share][0])
            raise ValueError(f"{name} must be between 0 and 1, got {wrong}")
        vectors.append(vector if checks.can_look(vector) else vector.where(is_share, torch.nan))
    return vectors[0], vectors[1]
