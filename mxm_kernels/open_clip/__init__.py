"""open_clip's losses, fused: the same constructors, the same calls, the same numbers.

``losses`` has the classes, ``training`` puts them into open_clip's own training program, and
``captions`` gives that program several captions of an image. open_clip itself is imported when
it is used, so that importing this needs nothing but torch.
"""

from mxm_kernels.open_clip.losses import ClipLoss, DistillClipLoss, MFHLoss, SigLipLoss
from mxm_kernels.open_clip.training import patch, patch_mfh

__all__ = ["ClipLoss", "DistillClipLoss", "MFHLoss", "SigLipLoss", "patch", "patch_mfh"]
