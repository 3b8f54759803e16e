"""Parts of sums, merged: what float32 keeps of them where all similarities are large."""

import pytest
import torch

from mxm_kernels.backends.interface import Upstream
from mxm_kernels.distributed.merging import (
    Merged,
    merge,
    names_of,
    shared_out,
    unpacked,
    whole_of,
    with_columns,
)

W, ROWS = 4, 50
NAMES = names_of(teacher=True, diagnostics=True, neg_sum=True, removes=True)
SUMS = "teacher_mean", "neg_sum", "entropy", "num_negatives"  # 0 where there is nothing


def _parts(level: float) -> torch.Tensor:
    """(W, rows, k) in float64, of numbers that float32 holds; the second rank has no columns."""
    g = torch.Generator().manual_seed(0)
    made = torch.randn(W, ROWS, len(NAMES), generator=g).double()
    made[..., NAMES.index("teacher_mean")] += level
    made[..., NAMES.index("teacher_lse")] += level
    made[..., NAMES.index("entropy")] = made[..., NAMES.index("entropy")].abs()
    for name in NAMES:
        made[1, :, NAMES.index(name)] = 0.0 if name in SUMS else -torch.inf
    return made.float().double()


def _expected(parts: torch.Tensor) -> dict[str, torch.Tensor]:
    p = unpacked(parts, NAMES)
    shares = p.teacher_lse.softmax(0)
    surprise = torch.where(shares > 0, -shares.log(), 0.0)
    return {
        "neg_lse": p.neg_lse.logsumexp(0),
        "teacher_mean": (shares * p.teacher_mean).sum(0),
        "neg_sum": p.neg_sum.sum(0),
        "excluded_lse": p.excluded_lse.logsumexp(0),
        "num_negatives": p.num_negatives.sum(0),
        "teacher_lse": p.teacher_lse.logsumexp(0),
        "hardest": p.hardest.amax(0),
        "entropy": (shares * (p.entropy + surprise)).sum(0),
    }


@pytest.mark.parametrize("level", [0.0, 300.0, 30_000.0])
def test_merged_averages_lose_no_more_than_their_own_rounding(level):
    """Shares that do not add up to 1 would cost eps |T| |S|."""
    parts, eps = _parts(level), torch.finfo(torch.float32).eps
    made = merge(parts.float(), NAMES)
    for name, value in _expected(parts).items():
        large = name in ("teacher_mean", "teacher_lse")
        # The shares themselves are of t, rounded: they cost the averages' differences.
        rounding = 8 * eps * (1 + level if large or name == "entropy" else 8)
        error = (getattr(made, name).double() - value).abs().max()
        assert error <= rounding, name


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("neg_sum", [False, True])
@pytest.mark.parametrize("removes", [False, True])
def test_gradients_are_those_of_the_merge(teacher, neg_sum, removes):
    names = names_of(teacher, diagnostics=False, neg_sum=neg_sum, removes=removes)
    every = unpacked(_parts(3.0), NAMES)
    parts = torch.stack([getattr(every, name) for name in names], -1)
    g = torch.Generator().manual_seed(1)
    n, u, m, e = (torch.randn(ROWS, generator=g, dtype=torch.float64) for _ in range(4))
    empty, excludes = n.new_empty(0), teacher and removes
    given = u if teacher else empty, m if neg_sum else empty, e if excludes else empty
    d = Upstream(n, empty, *given)
    leaf = parts.clone().requires_grad_()
    p = unpacked(leaf, names)
    total = (p.neg_lse.logsumexp(0) * n).sum()
    if teacher:
        total = total + ((p.teacher_lse.detach().softmax(0) * p.teacher_mean).sum(0) * u).sum()
    if neg_sum:
        total = total + (p.neg_sum.sum(0) * m).sum()
    if excludes:
        total = total + (p.excluded_lse.logsumexp(0) * e).sum()
    (expected,) = torch.autograd.grad(total, leaf)
    made = shared_out(d, slice(None), parts, whole_of(merge(parts, names)), names)
    there = [name for name in Upstream._fields if name in names]
    columns = [names.index(name) for name in there]
    torch.testing.assert_close(made, expected[..., columns].nan_to_num())
    joined = with_columns(d, 2, made[0], names)
    for k, name in enumerate(there):
        assert torch.equal(getattr(joined, name), torch.cat([getattr(d, name)[:2], made[0, :, k]]))


def test_what_there_is_not_stays_empty():
    made = merge(torch.randn(W, ROWS, 1), names_of(False, False, False))
    assert [len(v) for v in made] == [ROWS] + [0] * (len(Merged._fields) - 1)
