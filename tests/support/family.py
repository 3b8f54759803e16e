"""The public losses: each fused function beside its dense rows, and the options that it takes.

``support.options`` declares the options, ``support.calls`` calls a loss with them, and
``support.dense`` computes the same from matrices.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

import mxm_kernels as mxm
from reference import family
from reference.mfh import soft_rows
from reference.siglip import siglip_rows
from tests.support.options import OF_TEACHER, OPTIONS, Choice

Rows = Callable[..., Tensor]  # (S, positives, negatives, weights[, smoothing]) -> (rows,)
ROUNDS, SOFT_SHARE, PRIOR = 3, 0.4, 0.1
BIAS = -5.0


@dataclass(frozen=True)
class Loss:
    """One loss: the function under test and its dense rows."""

    fused: Callable[..., Any]
    dense: Rows
    weights: Callable[[Tensor], Tensor] = family.paired  # of the positives, from the group matrix
    needs: frozenset[str] = frozenset()  # of "scale" and "bias", what the rows are a function of
    own_weights: bool = True  # takes pair_weights
    drawn: str = ""  # "positives" or "selection" (ROUNDS of them), or "rows" (SOFT_SHARE of them)
    pairs: bool = True  # knows positives; else dense is (S, T, <a, b>) -> (rows,), over all columns
    one_modality: bool = False
    every_row: bool = False  # rows without a positive count
    two_ways: bool = False  # the features go to the loss beside S too
    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # other than in OPTIONS

    @property
    def function(self) -> Any:
        """The public function."""
        return self.fused.func if isinstance(self.fused, partial) else self.fused

    @property
    def options(self) -> dict[str, tuple[Any, ...]]:
        """Name and values of every option that it takes."""
        if self.one_modality:
            return dict(self.values)
        refused = set(self.function.not_taken) - set(self.values)
        if not self.own_weights:
            refused.add("pair_weights")
        return {n: self.values.get(n, v) for n, v in OPTIONS.items() if n not in refused}

    def taken(self, choice: Any) -> Any:
        """What of a choice it takes; the rest is plain."""
        options, plain = self.options, Choice()
        values = {
            name: getattr(choice, name)
            for name, allowed in options.items()
            if getattr(choice, name) in allowed
        }
        made = Choice(**values)
        if not self.has_soft(made):
            made = replace(made, teacher_image_offsets=False, teacher_logit_scale=False)
        if self.reads_teacher(made):
            return made
        return replace(made, **{name: getattr(plain, name) for name in OF_TEACHER})

    def has_soft(self, choice: Any) -> bool:
        """Whether a teacher is given to a soft part."""
        return choice.soft_weight != "none" or not self.pairs

    def reads_teacher(self, choice: Any) -> bool:
        """Whether teacher features are given."""
        return self.has_soft(choice) or choice.filter_margin is not None


def soft_of_teacher(S: Tensor, T: Tensor, cosines: Tensor) -> Tensor:
    return soft_rows(S, T)


def _continuously_weighted(S: Tensor, T: Tensor, cosines: Tensor) -> Tensor:
    return family.continuously_weighted(S, cosines)


_masked = partial(family.info_nce, masked=True)
_unmasked = partial(family.info_nce, masked=False)
_TAUGHT = {"soft_weight": ("none", "number")}  # what brings a teacher where it has no share
_INTRA_MODAL = {
    "soft_weight": ("none", "number", "one"),
    "teacher_logit_scale": OPTIONS["teacher_logit_scale"],
    "image_weights": OPTIONS["image_weights"],  # row_weights there
    "image_offsets": ("none", "both"),  # offsets there
    "teacher_image_offsets": OPTIONS["teacher_image_offsets"],  # teacher_offsets there
    "exclude_ids": OPTIONS["exclude_ids"],
    "within_ids": OPTIONS["within_ids"],
    "filter_margin": OPTIONS["filter_margin"],
    "reduction": OPTIONS["reduction"],
}
_intra_modal = partial(Loss, one_modality=True, weights=family.alike, values=_INTRA_MODAL)

LOSSES = {
    "mfh": Loss(
        partial(mxm.fused_mfh_loss, rounds=None),
        _masked,
        family.alike,
        values={"soft_weight": ("none", "number", "one")},  # hard_weight there
    ),
    "mfh, selected": Loss(
        mxm.fused_mfh_loss, _masked, drawn="selection", own_weights=False, values=_TAUGHT
    ),
    "hard": Loss(partial(mxm.fused_hard_loss, rounds=None), _masked, family.alike),
    "hard, drawn": Loss(partial(mxm.fused_hard_loss, rounds=ROUNDS), _masked, drawn="positives"),
    "soft": Loss(
        mxm.fused_soft_loss, soft_of_teacher, own_weights=False, pairs=False, every_row=True
    ),
    "info_nce": Loss(mxm.fused_info_nce_loss, _masked),
    "info_nce, unmasked": Loss(
        partial(mxm.fused_info_nce_loss, mask_false_negatives=False), _unmasked
    ),
    "supcon out": Loss(mxm.fused_supcon_loss, _unmasked, family.alike),
    "supcon in": Loss(
        partial(mxm.fused_supcon_loss, positives="in"),
        family.supcon_in,
        family.alike,
        own_weights=False,
    ),
    "decoupled": Loss(mxm.fused_decoupled_loss, family.decoupled),
    "debiased": Loss(
        partial(mxm.fused_debiased_loss, positive_prior=PRIOR),
        partial(family.debiased, prior=PRIOR),
        needs=frozenset({"scale"}),
    ),
    "self distillation": Loss(
        partial(mxm.fused_self_distillation_loss, soft_share=SOFT_SHARE),
        _masked,
        drawn="rows",
        values=_TAUGHT,
    ),
    "siglip": Loss(
        mxm.fused_siglip_loss,
        siglip_rows,
        lambda positives: positives.double(),
        needs=frozenset({"bias"}),
        every_row=True,
    ),
    "cwcl": Loss(
        mxm.fused_cwcl_loss,
        _continuously_weighted,
        own_weights=False,
        pairs=False,
        every_row=True,
        two_ways=True,
    ),
    "intra-modal": _intra_modal(mxm.fused_intra_modal_loss, _masked),
    "intra-modal, unmasked": _intra_modal(
        partial(mxm.fused_intra_modal_loss, mask_positives=False), _unmasked
    ),
    "intra-modal, drawn": _intra_modal(
        partial(mxm.fused_intra_modal_loss, rounds=ROUNDS), _masked, drawn="positives"
    ),
}


def keyword_arguments(function: Callable[..., Any]) -> set[str]:
    """Names of the arguments that are its own, and not options of all losses."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
