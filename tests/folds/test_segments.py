"""Segment operations against loops, and their derivatives against finite differences."""

import torch

from mxm_kernels.folds.segments import Segments, permute, segment_logsumexp, segment_sum, spread

SEGMENTS = Segments(torch.tensor([0, 3, 3, 4, 6]), torch.tensor([0, 0, 0, 2, 3, 3]))
PAIRS = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ROWS = PAIRS[:4].clone()


def test_values():
    parts = [PAIRS[a:b] for a, b in ((0, 3), (3, 3), (3, 4), (4, 6))]
    assert torch.equal(spread(ROWS, SEGMENTS), ROWS[SEGMENTS.owners])
    torch.testing.assert_close(segment_sum(PAIRS, SEGMENTS), torch.stack([p.sum() for p in parts]))
    torch.testing.assert_close(
        segment_logsumexp(PAIRS, SEGMENTS), torch.stack([p.logsumexp(0) for p in parts])
    )


def test_derivatives():
    pairs, rows = PAIRS.clone().requires_grad_(), ROWS.clone().requires_grad_()
    order = torch.tensor([5, 3, 0, 1, 4, 2])
    inverse = order.argsort()
    torch.autograd.gradcheck(lambda r: spread(r, SEGMENTS), rows)
    torch.autograd.gradcheck(lambda p: segment_sum(p, SEGMENTS), pairs)
    torch.autograd.gradcheck(lambda p: segment_logsumexp(p, SEGMENTS)[[0, 2, 3]], pairs)
    torch.autograd.gradcheck(lambda p: permute(p, order, inverse), pairs)


def test_logsumexp_of_large_values():
    values = torch.tensor([1000.0, 1000.0, -1000.0], requires_grad=True)
    total = segment_logsumexp(values, Segments(torch.tensor([0, 3]), torch.zeros(3).long()))
    total.backward()
    torch.testing.assert_close(total, torch.tensor([1000.0]) + torch.tensor(2.0).log())
    torch.testing.assert_close(values.grad, torch.tensor([0.5, 0.5, 0.0]))
