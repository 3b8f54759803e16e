"""The operator of the diagnostics: the sums of ``backends/diagnostics.py``, on every backend."""

import math
from itertools import pairwise

import pytest
import torch

from mxm_kernels.backends.diagnostics import diagnostic_sums as defined
from mxm_kernels.backends.row_interface import DiagnosedRows
from mxm_kernels.ops.diagnostics import diagnostic_sums

IMAGES, TEXTS = 150, 131  # more than two blocks of a kernel; one block has images and texts


def _made(images=IMAGES, texts=TEXTS, *, entropy=True, row_scales=False, dtype=torch.float32):
    """A ragged list: every fifth row has no positive, every seventh no negative."""
    rows = images + texts
    row, numbers = torch.arange(rows), lambda n: torch.randn(n, dtype=dtype)
    offsets = torch.cat([torch.zeros(1).long(), (row % 5).cumsum(0)])
    lone = row % 7 == 3
    return DiagnosedRows(
        numbers(rows).masked_fill(lone, -torch.inf),
        numbers(int(offsets[-1])),
        numbers(rows).masked_fill(lone, -torch.inf),
        numbers(rows).abs() if entropy else None,
        numbers(rows).exp() if row_scales else torch.tensor(3.0, dtype=dtype),
        offsets,
        images,
    )


def _on(rows, backend):
    moved = [v.to(backend.device) if isinstance(v, torch.Tensor) else v for v in rows]
    return DiagnosedRows(*moved)


def _row_by_row(rows):
    """(2, F) by a loop over the rows."""
    fields = 5 if rows.entropy is None else 7
    made, scales = torch.zeros(2, fields).double(), rows.scale.expand(len(rows.neg_lse)).tolist()
    for r, (start, end) in enumerate(pairwise(rows.offsets.tolist())):
        side, positives = int(r >= rows.images), rows.positives[start:end].double()
        if start < end:
            hit = float(positives.max() > rows.hardest[r])
            made[:, side] += torch.tensor([hit, 1])
            made[:, 2] += torch.tensor([positives.sum() / scales[r], end - start])
        if rows.neg_lse[r] > -math.inf:
            made[:, 3 + side] += torch.tensor([rows.hardest[r] / scales[r], 1])
        if rows.entropy is not None:
            made[:, 5 + side] += torch.tensor([rows.entropy[r], 1])
    return made


@pytest.mark.parametrize("row_scales", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
def test_the_definition_row_by_row(entropy, row_scales):
    rows = _made(entropy=entropy, row_scales=row_scales, dtype=torch.float64)
    torch.testing.assert_close(defined(rows), _row_by_row(rows))


SHAPES = {
    "a block of both sides": (IMAGES, TEXTS),
    "no images": (0, TEXTS),
    "no texts": (IMAGES, 0),
    "one row a side": (1, 1),
    "no rows": (0, 0),
}


@pytest.mark.parametrize("row_scales", [False, True])
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_sums_are_the_same_everywhere(shape, entropy, row_scales, backend):
    rows = _made(*shape, entropy=entropy, row_scales=row_scales)
    got, expected = diagnostic_sums(_on(rows, backend), backend.name).cpu(), defined(rows)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(got[1], expected[1]) and torch.equal(got[0, :2], expected[0, :2])


def test_two_runs_give_the_same_bits(backend):
    rows = _on(_made(), backend)
    first, second = (diagnostic_sums(rows, backend.name) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("where", ["neg_lse", "positives", "hardest", "entropy"])
def test_nan_shows_in_the_fields_of_both_sides(where, backend):
    """Where a row has NaN, which may be one without a positive."""
    rows = _on(_made(), backend)
    getattr(rows, where)[5] = torch.nan
    if where == "hardest":  # of a row whose n is NaN
        rows.neg_lse[5] = torch.nan
    got = diagnostic_sums(rows, backend.name)
    teacher = where == "entropy"
    assert got[0].isnan().tolist() == [not teacher] * 5 + [teacher] * 2
    assert got[1].isfinite().all()


def test_contract_with_pytorch(backend):
    for entropy in (False, True):
        arguments = (*_on(_made(12, 10, entropy=entropy), backend), backend.name)
        torch.library.opcheck(torch.ops.mxm_kernels.diagnostic_sums.default, arguments)
