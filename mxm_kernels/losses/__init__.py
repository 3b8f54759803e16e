"""The public losses, one file for each kind of loss: the function, its module, its special parts.

A function checks its arguments, makes a batch and names a formula. A module is a function whose
hyper-parameters are fixed by the constructor, together with those of :class:`HyperParameters`. Its
``forward`` takes the tensors and the options of :class:`Inputs`.
"""

from mxm_kernels.losses.contrastive_rows import contrastive_rows
from mxm_kernels.losses.cwcl import CWCLLoss, fused_cwcl_loss
from mxm_kernels.losses.info_nce import (
    DebiasedLoss,
    DecoupledLoss,
    InfoNCELoss,
    fused_debiased_loss,
    fused_decoupled_loss,
    fused_info_nce_loss,
)
from mxm_kernels.losses.intra_modal import IntraModalLoss, fused_intra_modal_loss
from mxm_kernels.losses.mfh import (
    HardLoss,
    MFHLoss,
    SoftLoss,
    fused_hard_loss,
    fused_mfh_loss,
    fused_soft_loss,
)
from mxm_kernels.losses.selection import draw_selection
from mxm_kernels.losses.self_distillation import (
    SelfDistillationLoss,
    fused_self_distillation_loss,
)
from mxm_kernels.losses.siglip import SigLipLoss, fused_siglip_loss
from mxm_kernels.losses.supcon import SupConLoss, fused_supcon_loss

__all__ = [
    "CWCLLoss",
    "DebiasedLoss",
    "DecoupledLoss",
    "HardLoss",
    "InfoNCELoss",
    "IntraModalLoss",
    "MFHLoss",
    "SelfDistillationLoss",
    "SigLipLoss",
    "SoftLoss",
    "SupConLoss",
    "contrastive_rows",
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
