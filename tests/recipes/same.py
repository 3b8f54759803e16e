"""A recipe against its dense form: value and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from tests.support.backend import BackendUnderTest
from tests.support.processes import results

# Of the largest entry of the gradients, and of the value where it is above 1. PyTorch's softplus(z)
# is z above 20, which is 2e-9 off.
BOUNDS = {torch.float32: 2e-5, torch.float64: 1e-8}


def unit(*shape: int) -> Tensor:
    """Rows of length 1, in float32: every dtype is given the same numbers."""
    return normalize(torch.randn(*shape), dim=-1)


def spread_ids(rows: int, instances: int) -> Tensor:
    """(rows,) ids in no order, as ragged as chance has them."""
    return torch.randint(instances, (rows,))


def differentiated(loss: Callable[..., Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """The value and its gradient by each leaf, in float64 on the CPU."""
    copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    value = loss(*copies)
    grads = torch.autograd.grad(value, copies, allow_unused=True, materialize_grads=True)
    return [t.detach().double().cpu() for t in (value, *grads)]


def assert_close(got: list[Tensor], expected: list[Tensor], bound: float) -> None:
    """Value and gradients, the latter by the largest entry of all of them."""
    largest = max(float(g.abs().max()) for g in expected[1:])
    assert largest > 0
    size = max(1.0, float(expected[0].abs()))
    assert float((got[0] - expected[0]).abs()) <= bound * size, (got[0], expected[0])
    for k, (a, e) in enumerate(zip(got[1:], expected[1:], strict=True)):
        error = float((a - e).abs().max())
        assert error <= bound * max(largest, 1e-3), f"gradient {k}: off by {error} of {largest}"


def assert_same(
    backend: BackendUnderTest,
    ours: Callable[..., Tensor],
    dense: Callable[..., Tensor],
    *leaves: Tensor,
) -> None:
    """``ours`` on the backend, in each dtype that it takes and that is wide, is ``dense``."""
    expected = differentiated(dense, [leaf.double() for leaf in leaves])
    for dtype, bound in BOUNDS.items():
        if dtype in backend.dtypes:
            got = differentiated(ours, [leaf.to(backend.device, dtype) for leaf in leaves])
            assert_close(got, expected, bound)


# Of past batches; the same in every process.
QUEUE = normalize(torch.arange(40.0).view(5, 8).sin(), dim=1)
Of = Callable[..., Tensor]  # of the leaves, the rows and columns of the rank, and its group


def _of_rank(
    rank: int,
    world: int,
    losses: dict[str, Of],
    leaves: Sequence[Tensor],
    cuts: Sequence[Sequence[int]],
) -> dict[str, list[Tensor]]:
    ends = [list(accumulate(cut)) for cut in cuts]
    own = [slice(end[rank] - cut[rank], end[rank]) for end, cut in zip(ends, cuts, strict=True)]
    given = [*own, dist.group.WORLD]
    return {n: differentiated(lambda *t, f=f: f(*t, *given), leaves) for n, f in losses.items()}


def assert_same_on_ranks(
    losses: dict[str, Of], leaves: Sequence[Tensor], *cuts: Sequence[int]
) -> None:
    """Two ranks give the losses of one process, and their gradients on average.

    The first two leaves are features of the whole batch, of which a rank takes its rows; ``cuts``
    are the numbers of images and of texts of each rank.
    """
    leaves, every = [leaf.double() for leaf in leaves], slice(None)
    ranks = results(2, _of_rank, losses, leaves, cuts)
    for name, loss in losses.items():
        expected = differentiated(lambda *t, f=loss: f(*t, every, every, None), leaves)
        both = [rank[name] for rank in ranks]
        for value, *_ in both:
            torch.testing.assert_close(value, expected[0], rtol=1e-8, atol=1e-8, msg=name)
        grads = [torch.stack(pair).mean(0) for pair in zip(*(b[1:] for b in both), strict=True)]
        assert_close([both[0][0], *grads], expected, 1e-8)
