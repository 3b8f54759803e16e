"""The losses as modules, under the name of version 0.1; they are in ``mxm_kernels.losses``."""

import sys

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
)

# A module that was saved whole names its class by the file that version 0.1 had it in.
for _name in ("cwcl", "info_nce", "intra_modal", "mfh", "siglip", "supcon"):
    sys.modules[f"{__name__}.{_name}"] = sys.modules[__name__]

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
