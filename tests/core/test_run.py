"""What options add to the list of rows."""

import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels import fused_supcon_loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_smoothing_reads_the_matrix_whose_rows_were_scaled(dtype, backend):
    """The only column of a row has all of its softmax and of its smoothing: the loss is 0.

    A scale for each row is rounded into 16-bit features; unrounded, the sum of a row is off by
    up to 0.2 here.
    """
    x, y = (normalize(torch.randn(n, 6)).to(backend.device, dtype) for n in (5, 1))
    scales = tuple(50 + 50 * torch.rand(n, device=backend.device) for n in (5, 1))
    rows, _ = fused_supcon_loss(
        x, y, (5, 1), logit_scale=scales, label_smoothing=0.1, reduction="none",
        backend=backend.name,
    )  # fmt: skip
    assert float(rows.abs().max()) < 1e-4
