"""The loss functions, under the name of version 0.1; they are in ``mxm_kernels.losses``."""

import sys

from mxm_kernels.losses import (
    draw_selection,
    fused_cwcl_loss,
    fused_debiased_loss,
    fused_decoupled_loss,
    fused_hard_loss,
    fused_info_nce_loss,
    fused_intra_modal_loss,
    fused_mfh_loss,
    fused_self_distillation_loss,
    fused_siglip_loss,
    fused_soft_loss,
    fused_supcon_loss,
)

# Modules that were saved whole name their function by the file that version 0.1 had it in.
for _name in ("cwcl", "info_nce", "intra_modal", "mfh", "siglip", "supcon"):
    sys.modules[f"{__name__}.{_name}"] = sys.modules[__name__]

__all__ = [
    "draw_selection",
    "fused_cwcl_loss",
    "fused_debiased_loss",
    "fused_decoupled_loss",
    "fused_hard_loss",
    "fused_info_nce_loss",
    "fused_intra_modal_loss",
    "fused_mfh_loss",
    "fused_self_distillation_loss",
    "fused_siglip_loss",
    "fused_soft_loss",
    "fused_supcon_loss",
]
