"""The public functions, one file for each kin of losses: check, run the operator, mix."""

from mxm_kernels.functional.cwcl import fused_cwcl_loss
from mxm_kernels.functional.info_nce import (
    fused_debiased_loss,
    fused_decoupled_loss,
    fused_info_nce_loss,
    fused_self_distillation_loss,
)
from mxm_kernels.functional.intra_modal import fused_intra_modal_loss
from mxm_kernels.functional.mfh import (
    draw_selection,
    fused_hard_loss,
    fused_mfh_loss,
    fused_soft_loss,
)
from mxm_kernels.functional.siglip import fused_siglip_loss
from mxm_kernels.functional.supcon import fused_supcon_loss

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
