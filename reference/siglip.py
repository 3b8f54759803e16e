"""The sigmoid loss of SigLIP with several positives per row, dense, in float64.

Written from the paper's equation (arXiv 2303.15343, section 3.2) to be read and trusted. It
shares no code with mxm_kernels. With S = s x y^T, b the bias, and z_ij = 1 where image i and
text j show the same instance, -1 elsewhere:

    L = -1/M sum_i sum_j log sigmoid(z_ij (S_ij + b))

The paper has one positive a row, z = 1 on the diagonal; the equation stays what it is. Its rows
one by one are those of ``siglip_rows``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from reference.mfh import group_matrix, similarity


def siglip_loss(
    x: Tensor,
    y: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    *,
    scale: Tensor | float,
    bias: Tensor | float,
) -> Tensor:
    """The loss as a 0-d tensor; x (M, D), y (N, D)."""
    z = torch.where(group_matrix(image_ids, text_ids), 1.0, -1.0).to(x.dtype)
    return -logsigmoid(z * (similarity(x, y, scale) + bias)).sum() / x.shape[0]


def siglip_rows(
    S: Tensor, positives: Tensor, negatives: Tensor, weights: Tensor, *, bias: Tensor
) -> Tensor:
    """The sum of each row, (rows,); ``weights`` are those of the terms of its positives.

    A column that is neither a positive nor a negative takes no part.
    """
    of_positives = -logsigmoid(S + bias) * weights * positives
    of_negatives = -logsigmoid(-S - bias) * negatives
    return (of_positives + of_negatives).sum(dim=1)
