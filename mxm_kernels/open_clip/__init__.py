"""open_clip's losses, fused: the same constructors, the same calls, the same values in float32.

``losses`` and ``coca`` have the classes. ``training`` puts them into open_clip's own training
program, ``flags`` looks at that program's arguments first, and ``captions`` gives it several
captions of an image. open_clip itself is imported when it is used, so that importing this needs
nothing but torch.
"""

from mxm_kernels.open_clip.coca import CoCaLoss
from mxm_kernels.open_clip.losses import ClipLoss, DistillClipLoss, MFHLoss, SigLipLoss
from mxm_kernels.open_clip.training import patch, patch_mfh

__all__ = [
    "ClipLoss",
    "CoCaLoss",
    "DistillClipLoss",
    "MFHLoss",
    "SigLipLoss",
    "patch",
    "patch_mfh",
]
