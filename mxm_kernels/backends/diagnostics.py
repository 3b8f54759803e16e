"""The sums that ``Diagnostics`` are made of: what they are, in plain PyTorch, for every backend.

The result (2, F) has the sums of a field first, then how many numbers each is of. The F fields
are those of ``core.diagnostics.Diagnostics`` in their order: F is 7, or 5 without a teacher. Sums
over ranks are sums of these.

Features that are not finite make n or a positive NaN, and then every sum of the five is NaN: a
comparison with NaN, or a maximum that left it out, would look like a number of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mxm_kernels.backends.row_interface import DiagnosedRows


def diagnostic_sums(rows: DiagnosedRows) -> Tensor:
    """(2, F) sums over this process's rows, in the dtype of the rows."""
    n, worst, counts = rows.neg_lse, rows.hardest, rows.offsets.diff()
    best, total = (_of_rows(rows, how, start) for how, start in (("max", -torch.inf), ("sum", 0)))
    has_negative = n != -torch.inf  # NaN too
    fault = (0 * n.where(has_negative, 0) + 0 * total).sum()
    hits = (best > worst).to(n.dtype)  # a row without a positive has -inf
    hardest = (worst / rows.scale).where(has_negative, 0)
    cosines = (total / rows.scale).sum()[None]
    sums = [_halves(rows, hits), cosines, _halves(rows, hardest)]
    counted = [_halves(rows, counts > 0), counts.sum()[None], _halves(rows, has_negative)]
    made = torch.stack([torch.cat(sums) + fault, torch.cat(counted).to(n.dtype)])
    if rows.entropy is None:
        return made
    entropy = _halves(rows, rows.entropy) + (0 * rows.entropy).sum()
    every = _halves(rows, torch.ones_like(n))
    return torch.cat([made, torch.stack([entropy, every])], 1)


def _of_rows(rows: DiagnosedRows, how: str, start: float) -> Tensor:
    """(R,) maximum or sum of the positives of each row; ``start`` without one."""
    return torch.segment_reduce(
        rows.positives, how, offsets=rows.offsets, initial=start, unsafe=True
    )


def _halves(rows: DiagnosedRows, values: Tensor) -> Tensor:
    """(2,) sum over the images, sum over the texts."""
    return torch.stack([values[: rows.images].sum(), values[rows.images :].sum()])
