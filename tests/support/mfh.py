"""The statistics operator: a batch for it, and the MFH loss of the ragged one."""

from __future__ import annotations

import torch

from mxm_kernels import Folds, fused_mfh_loss
from tests.support.cases import NAMED_CASES

RAGGED = NAMED_CASES["ragged and shuffled"]


def batch(backend, dtype=torch.float32, case=RAGGED):
    """x, y, the teacher's, s, of which x, y and s are leaves, and the tables."""
    x, y, tx, ty = (f.to(backend.device) for f in case.features(dtype))
    tables = Folds.from_ids(*case.ids).to(backend.device).tables(len(x), len(y), x.device)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    s = torch.tensor(20.0, device=backend.device, dtype=wide)
    return x.requires_grad_(), y.requires_grad_(), (tx, ty), s.requires_grad_(), tables


def loss_of(backend, x, y, teacher, s, **options):
    """The MFH loss of the ragged batch."""
    options = {"rounds": None} | options
    return fused_mfh_loss(
        x, y, RAGGED.ids, logit_scale=s, teacher_image_features=teacher[0],
        teacher_text_features=teacher[1], backend=backend.name, **options,
    )  # fmt: skip
