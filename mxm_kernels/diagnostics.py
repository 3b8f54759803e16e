"""Where version 0.1 had saved diagnostics; they are in ``mxm_kernels.core.diagnostics``."""

from mxm_kernels.core.diagnostics import Diagnostics

__all__ = ["Diagnostics"]
