"""Where version 0.1 had the class of saved queues; it is in ``mxm_kernels.core.options``."""

from mxm_kernels.core.options import Queue

__all__ = ["Queue"]
