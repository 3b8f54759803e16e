"""torch.compile as it is by default: every loss with all its options through generated C++.

What ``aot_eager`` traces is compiled here, for vectors of the machine: its last lanes are padding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.nn.functional import normalize

import mxm_kernels as mxm

try:
    get_cpp_compiler()
except InvalidCxxCompiler:
    pytest.skip("no C++ compiler", allow_module_level=True)

LOSSES = [name for name in mxm.__all__ if name.startswith("fused_")]
IDS = [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 9], [0, 0, 1, 1, 1, 2, 2, 3, 3, 8]
FOLDS = {"uniform": mxm.Folds.uniform(6, 5), "ragged": mxm.Folds.from_ids(*IDS)}


def _options(name: str) -> dict[str, Any]:
    """All that the loss takes, at once."""
    rows = [normalize(torch.randn(n, 16)) for n in (12, 10, 5, 3)]
    options = {
        "teacher_image_features": rows[0],
        "teacher_text_features": rows[1],
        "soft_weight": 0.3,
        "label_smoothing": 0.1,
        "image_to_text_weight": 0.7,
        "image_weights": torch.rand(12) + 0.1,
        "text_weights": torch.rand(10) + 0.1,
        "text_queue": mxm.Queue(rows[2], mxm.Folds.from_ids(IDS[0], [0, 2, 3, 7, 7])),
        "image_queue": rows[3],
    }
    own = {"fused_siglip_loss": {"logit_bias": -5.0}, "fused_intra_modal_loss": {}}
    own["fused_self_distillation_loss"] = {"soft_share": 1.0}  # of which no row is drawn
    own["fused_mfh_loss"] = own["fused_hard_loss"] = {"rounds": None}
    if name == "fused_intra_modal_loss":
        weights, teacher = options["image_weights"], rows[0]
        return {"row_weights": weights, "teacher_features": teacher, "soft_weight": 0.3}
    refused = getattr(mxm, name).not_taken
    return {k: v for k, v in options.items() if k not in refused} | own.get(name, {})


def _check(name: str, folds: str, options: dict[str, Any]) -> None:
    """Value and gradients are those of the eager loss."""
    torch.compiler.reset()
    loss, y, made = getattr(mxm, name), normalize(torch.randn(10, 16)), []
    others: tuple[Any, ...] = (y,) if "folds" in loss.not_taken else (y, FOLDS[folds])
    if name == "fused_intra_modal_loss":
        others = (6,)

    def call(x, s):
        return loss(x, *others, logit_scale=s, **options)

    x = normalize(torch.randn(12, 16))
    for function in (call, torch.compile(call, fullgraph=True)):
        leaves = x.clone().requires_grad_(), torch.tensor(9.0, requires_grad=True)
        value = function(*leaves)
        value.backward()
        made.append((value.detach(), *(leaf.grad for leaf in leaves)))
    torch.testing.assert_close(*made)


@pytest.mark.parametrize("name", LOSSES)
def test_all_options_of_a_loss(name):
    _check(name, "uniform", _options(name))


@pytest.mark.parametrize("folds", FOLDS)
def test_paired_weights(folds):
    """A remainder pairs the rows of an instance. No lane of a vector may divide by 0."""
    _check("fused_info_nce_loss", folds, {})
