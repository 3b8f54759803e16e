"""Contrastive losses for PyTorch with several images and texts of each instance in a batch.

They are fused: the M x N similarity matrix and its masks are never held beyond a memory budget.
"""

from torch.serialization import add_safe_globals

from mxm_kernels.aggregate import fold_mean
from mxm_kernels.backends import BackendUnavailableError
from mxm_kernels.core.diagnostics import Diagnostics
from mxm_kernels.core.options import Options, Queue
from mxm_kernels.core.rows import Rows
from mxm_kernels.folds import Folds
from mxm_kernels.gradient_cache import GradientCache
from mxm_kernels.losses import (
    CWCLLoss,
    DebiasedLoss,
    DecoupledLoss,
    HardLoss,
    InfoNCELoss,
    IntraModalLoss,
    MFHLoss,
    SelfDistillationLoss,
    SigLipLoss,
    SoftLoss,
    SupConLoss,
    contrastive_rows,
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
from mxm_kernels.memory import get_memory_budget, memory_budget, set_memory_budget

__version__ = "0.1.0"

add_safe_globals([Diagnostics, Queue])  # tensors and names: torch.load takes them from any file

__all__ = [
    "BackendUnavailableError",
    "CWCLLoss",
    "DebiasedLoss",
    "DecoupledLoss",
    "Diagnostics",
    "Folds",
    "GradientCache",
    "HardLoss",
    "InfoNCELoss",
    "IntraModalLoss",
    "MFHLoss",
    "Options",
    "Queue",
    "Rows",
    "SelfDistillationLoss",
    "SigLipLoss",
    "SoftLoss",
    "SupConLoss",
    "contrastive_rows",
    "draw_selection",
    "fold_mean",
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
    "get_memory_budget",
    "memory_budget",
    "set_memory_budget",
]
