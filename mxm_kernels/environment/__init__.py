"""What ``python -m mxm_kernels`` tells: the environment report and the self-check."""
