"""Reads beyond its memory in the extension: `make sanitize` first sees this one stopped."""

import torch

import mxm_kernels._native as native

x, y = torch.zeros(64), torch.zeros(4096)
native.exponential("portable", x.data_ptr(), y.data_ptr(), 4096)
print("an overrun of 4032 floats went unseen")
