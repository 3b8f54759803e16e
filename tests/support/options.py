"""The options of the losses, declared once: what each is in a test, and where the others are.

``OPTIONS`` has the values that a test draws, the plain one first. An option of the package that
none of the three lists has makes ``tests/losses/test_options_of_losses.py`` fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import make_dataclass
from itertools import chain, combinations, cycle
from typing import Any

import torch
from hypothesis import strategies as st

_QUEUES = "none", "negatives", "folds"
OPTIONS: dict[str, tuple[Any, ...]] = {
    "soft_weight": ("none", "number", "rows", "one"),
    "teacher_logit_scale": (False, True),
    "teacher_dtype": (None, torch.float8_e4m3fn),
    "label_smoothing": (0.0, 0.1),
    "image_to_text_weight": (0.5, 0.25, 0.0, 1.0),
    "image_weights": (False, True),
    "text_weights": (False, True),
    "pair_weights": (False, True),
    "text_queue": _QUEUES,
    "image_queue": _QUEUES,
    "image_offsets": ("none", "one side", "both"),
    "teacher_image_offsets": (False, True),
    "exclude_ids": (False, True),
    "within_ids": (False, True),
    "filter_margin": (None, "absolute", "relative", "thresholds"),
    "diagnostics": (False, True),
    "reduction": ("mean", "none"),
    "logit_scale": ("number", "rows"),
}
# Options that belong to another one, or that are no part of a call on one process.
ELSEWHERE = {
    "teacher_image_features": "given where soft_weight is, and to a loss that needs a teacher",
    "teacher_text_features": "given where soft_weight is, and to a loss that needs a teacher",
    "text_offsets": "given where image_offsets is",
    "teacher_text_offsets": "given where teacher_image_offsets is",
    "filter_strategy": "given where filter_margin is",
    "filter_thresholds": "given where filter_margin is",
    "backend": "every test runs on the backends",
    "process_group": "tests/distributed",
    "gather": "tests/distributed",
}
# Arguments of one loss alone: its entries in ``family.LOSSES`` have their values.
OWN = {
    "fused_mfh_loss": {"hard_weight", "rounds", "generator", "selection"},
    "fused_hard_loss": {"rounds", "generator", "selection"},
    "fused_info_nce_loss": {"mask_false_negatives"},
    "fused_debiased_loss": {"positive_prior"},
    "fused_self_distillation_loss": {"soft_share", "generator"},
    "fused_supcon_loss": {"positives"},
    "fused_siglip_loss": {"logit_bias"},
    "fused_intra_modal_loss": {
        "mask_positives",
        "rounds",
        "generator",
        "teacher_features",
        "row_weights",
        "offsets",
        "teacher_offsets",
    },
}
# What says something of a teacher, which soft_weight brings.
OF_TEACHER = "teacher_logit_scale", "teacher_dtype", "teacher_image_offsets"

Choice = make_dataclass(
    "Choice", [(name, Any, values[0]) for name, values in OPTIONS.items()], frozen=True
)
Choice.__doc__ = "Which options a call has; their tensors follow from the case's seed."


def chosen(taken: Mapping[str, tuple[Any, ...]], **values: Any) -> Any:
    """A choice; what reads a teacher brings one, where a loss takes one."""
    of_teacher = any(values.get(name) for name in OF_TEACHER)
    if of_teacher and "soft_weight" in taken and "soft_weight" not in values:
        values["soft_weight"] = "number"
    return Choice(**values)


def singles(taken: Mapping[str, tuple[Any, ...]]) -> Iterator[Any]:
    """The plain choice, and each value of each option alone."""
    yield Choice()
    for name, (_, *values) in taken.items():
        for value in values:
            yield chosen(taken, **{name: value})


def pairs(taken: Mapping[str, tuple[Any, ...]]) -> Iterator[Any]:
    """Every two options together, whose values take turns."""
    values = {name: cycle(values) for name, (_, *values) in taken.items()}
    for one, other in combinations(taken, 2):
        yield chosen(taken, **{name: next(values[name]) for name in (one, other)})


def every(taken: Mapping[str, tuple[Any, ...]]) -> Iterator[Any]:
    """Single options, pairs of them, and all of them together."""
    last = {name: values[-1] for name, values in taken.items()}
    return chain(singles(taken), pairs(taken), [chosen(taken, **last)])


@st.composite
def choices(draw: st.DrawFn) -> Any:
    """Any options together, the plain value of each more often."""
    return Choice(
        **{name: draw(st.sampled_from((values[0], *values))) for name, values in OPTIONS.items()}
    )
