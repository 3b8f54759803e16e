"""The operator that adds a queue's columns to the sums of the rows."""

import pytest
import torch

from mxm_kernels.backends.row_interface import QueuePlace, RowSums
from mxm_kernels.ops.merge_queue import merge_queue

ROWS, QUEUED = 700, 300  # more than a block of either
PLACES = {"first": QueuePlace(0, 260), "last": QueuePlace(437, 263), "none": QueuePlace(700, 0)}


def _sums(length, seed, teacher, dtype=torch.float64) -> RowSums:
    g = torch.Generator().manual_seed(seed)
    n, u, t = (5 * torch.randn(length, generator=g, dtype=torch.float64) for _ in range(3))
    n[::7] = -torch.inf  # no negative
    empty = n.new_empty(0)
    return RowSums(*(v.to(dtype) for v in (n, u if teacher else empty, t if teacher else empty)))


def _expected(rows: RowSums, queue: RowSums, place: QueuePlace) -> list[torch.Tensor]:
    """Log-sum-exps of two columns, by the definition, and u by the teacher's softmax."""
    other = torch.full((ROWS,), -torch.inf, dtype=torch.float64)
    seen = slice(place.first, place.first + place.length)

    def beside(own, queued, nothing=other):
        full = nothing.clone()
        full[seen] = queued[: place.length]
        return torch.stack([own, full])

    n = beside(rows.neg_lse, queue.neg_lse).exp().sum(0).log()
    if not len(rows.teacher_lse):
        return [n, rows.teacher_mean, rows.teacher_lse]
    t = beside(rows.teacher_lse, queue.teacher_lse)
    u = beside(rows.teacher_mean, queue.teacher_mean, torch.zeros_like(other))
    return [n, (t.softmax(0) * u).sum(0), t.logsumexp(0)]


def _leaves(sums: RowSums) -> list[torch.Tensor]:
    return [v.requires_grad_() for v in sums[:2]]


@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_values_and_gradients(place, teacher, backend):
    g = torch.Generator().manual_seed(9)
    upstream = [torch.randn(ROWS, generator=g, dtype=torch.float64) for _ in range(2)]
    results = []
    for dtype in (torch.float64, torch.float32):
        rows, queue = (_sums(n, n, teacher, dtype) for n in (ROWS, QUEUED))
        if dtype == torch.float32:
            rows, queue = (RowSums(*(v.to(backend.device) for v in s)) for s in (rows, queue))
        leaves = _leaves(rows) + _leaves(queue)
        if dtype == torch.float64:
            made = _expected(rows, queue, place)
        else:
            total = torch.ones((), device=backend.device)
            made = list(merge_queue(rows, queue, total, place, backend.name))
        read = [m for m in made[:2] if len(m)]
        weighed = [(m * d.to(m)).nan_to_num(neginf=0) for m, d in zip(read, upstream, strict=False)]
        torch.cat(weighed).sum().backward()
        results.append(
            [*made, *(v.new_zeros(len(v)) if v.grad is None else v.grad for v in leaves)]
        )
    for actual, expected in zip(results[1], results[0], strict=True):
        expected = expected.nan_to_num(0.0, neginf=-torch.inf)  # of exp(-inf) in its definition
        torch.testing.assert_close(actual.cpu().double(), expected, rtol=1e-5, atol=1e-5)


def test_a_queue_that_is_not_finite_shows_in_the_rows_that_see_it(backend):
    rows, queue = (_sums(n, n, True, torch.float32) for n in (ROWS, QUEUED))
    rows, queue = (RowSums(*(v.to(backend.device) for v in s)) for s in (rows, queue))
    total = torch.tensor(-torch.inf, device=backend.device)
    made = merge_queue(rows, queue, total, PLACES["last"], backend.name)
    assert made.neg_lse[437:].isnan().all() and not made.neg_lse[:437].isnan().any()


@pytest.mark.parametrize("teacher", [True, False])
def test_contract_with_pytorch(teacher, backend):
    rows, queue = (_sums(n, n, teacher, torch.float32) for n in (ROWS, QUEUED))
    tensors = [v.to(backend.device).requires_grad_(k % 3 < 2) for k, v in enumerate(rows + queue)]
    total = torch.ones((), device=backend.device)
    arguments = (*tensors, total, *PLACES["first"], backend.name)
    torch.library.opcheck(torch.ops.mxm_kernels.merge_queue.default, arguments)


def test_second_derivatives_are_refused(backend):
    rows, queue = (_sums(n, n, False, torch.float32) for n in (ROWS, QUEUED))
    rows, queue = (RowSums(*(v.to(backend.device) for v in s)) for s in (rows, queue))
    leaf, total = rows.neg_lse.requires_grad_(), torch.ones((), device=backend.device)
    made = merge_queue(rows, queue, total, PLACES["first"], backend.name)
    (grad,) = torch.autograd.grad(made.neg_lse.nan_to_num(neginf=0).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()
