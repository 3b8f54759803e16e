"""Fused multifold contrastive losses for PyTorch: no similarity matrix, no masks."""

from mxm_kernels.backends import BackendUnavailableError
from mxm_kernels.folds import Folds
from mxm_kernels.functional import draw_selection, fused_mfh_loss
from mxm_kernels.gradient_cache import GradientCache
from mxm_kernels.modules import MFHLoss

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "Folds",
    "GradientCache",
    "MFHLoss",
    "draw_selection",
    "fused_mfh_loss",
]
