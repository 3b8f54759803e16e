"""The public losses as modules: they hold hyper-parameters and nothing else.

Every module is a function of ``functional`` with its hyper-parameters fixed by the constructor,
which also takes those of :class:`HyperParameters`; ``forward`` takes the tensors and the options
of :class:`Inputs`.

A file for each kin of losses, as in ``functional``.
"""

from mxm_kernels.modules.cwcl import CWCLLoss
from mxm_kernels.modules.info_nce import (
    DebiasedLoss,
    DecoupledLoss,
    InfoNCELoss,
    SelfDistillationLoss,
)
from mxm_kernels.modules.intra_modal import IntraModalLoss
from mxm_kernels.modules.mfh import HardLoss, MFHLoss, SoftLoss
from mxm_kernels.modules.siglip import SigLipLoss
from mxm_kernels.modules.supcon import SupConLoss

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
]
