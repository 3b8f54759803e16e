"""Runnable examples of mxm_kernels."""
