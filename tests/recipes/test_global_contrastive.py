"""docs/recipes/global_contrastive.py against matrices and libauc, step after step."""

import pytest
import torch
from torch.nn.functional import normalize

from docs.recipes.global_contrastive import MovingAverage, sogclr
from docs.recipes.metric_learning import two_views
from mxm_kernels import contrastive_rows
from tests.recipes.same import (
    BOUNDS,
    QUEUE,
    assert_close,
    assert_same,
    assert_same_on_ranks,
    differentiated,
    unit,
)

SEEDS = [0, 1, 2]
PAIRS = 15  # of the data set


def steps(batch, number=4):
    """The pairs of each step; those of a batch are seen together again in the fourth."""
    order = torch.randperm(PAIRS)
    return [order[(torch.arange(batch) + 5 * k) % PAIRS] for k in range(number)]


class Dense:
    """u itself, and the gradient of the source: a sum over the other side, weighted by 1 / u."""

    def __init__(self, gamma):
        self.u, self.gamma = torch.zeros(2, PAIRS, dtype=torch.float64), gamma

    def losses(self, x, y, temperatures, samples, rho):
        """Value: tau (log u + rho). Gradients: those of tau_i g_i / u_i, and of log u and rho."""
        made, count = [], len(x)
        for k, (a, b, tau) in enumerate(((x, y, temperatures[0]), (y, x, temperatures[1]))):
            for i in range(count):
                t = tau if tau.ndim == 0 else tau[i]
                others = [j for j in range(count) if j != i]
                h = (b[others] - b[i]) @ a[i]
                g = (h / t).exp().mean()
                old = self.u[k, samples[i]]
                first = bool(old == 0)
                u = g.detach() if first else (1 - self.gamma) * old + self.gamma * g.detach()
                self.u[k, samples[i]] = u
                moving = t.detach() * (g - g.detach()) / u
                made.append(t * (u.log() + rho) + moving)
        return torch.stack(made).mean()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("each", [False, True], ids=["one scale", "a scale for each row"])
@pytest.mark.parametrize("gamma", [0.9, 0.3])
def test_every_step_is_that_of_the_source(backend, gamma, each, seed):
    torch.manual_seed(seed)
    theirs = Dense(gamma)
    states = {}
    for samples in steps(6):
        exact = theirs.u.clone()

        def dense(x, y, first, second, samples=samples, exact=exact):
            theirs.u = exact.clone()
            return theirs.losses(x, y, (first, second), samples, 2.0 if each else 0.0)

        def ours(x, y, first, second, samples=samples):
            state = states.setdefault(x.dtype, MovingAverage(PAIRS, gamma, x.device, x.dtype))
            scale = (1 / first, 1 / second) if each else 1 / first
            rows = contrastive_rows(x, y, (1, 1), logit_scale=scale, backend=backend.name)
            return sogclr(rows, samples.to(x.device), state, 2.0 if each else 0.0)

        shape = (6,) if each else ()
        first, second = torch.rand(2, *shape) * 0.3 + 0.1
        if not each:
            dense = _one_temperature(dense)
        assert_same(backend, ours, dense, unit(6, 8), unit(6, 8), first, second)
        for dtype, state in states.items():
            close = {"rtol": 10 * BOUNDS[dtype], "atol": BOUNDS[dtype]}
            torch.testing.assert_close(state.log_u.exp().double().cpu(), theirs.u, **close)


def _one_temperature(dense):
    return lambda x, y, first, second: dense(x, y, first, first)


def test_with_gamma_1_it_is_the_local_loss():
    """Then u is of the batch alone: the gradient is that of tau log g, by autograd."""
    samples = torch.arange(6)

    def ours(x, y, tau):
        state = MovingAverage(6, gamma=1.0, dtype=x.dtype)
        for _ in range(2):
            rows = contrastive_rows(x, y, (1, 1), logit_scale=1 / tau)
            value = sogclr(rows, samples, state)
        return value

    def local(x, y, tau):
        h = [s - s.diag()[:, None] for s in (x @ y.T, y @ x.T)]
        others = ~torch.eye(6, dtype=torch.bool)
        logs = [(m[others].view(6, 5) / tau).exp().mean(1).log() for m in h]
        return (tau * (logs[0] + logs[1])).mean() / 2

    leaves = unit(6, 8).double(), unit(6, 8).double(), torch.tensor(0.2).double()
    assert_close(differentiated(ours, leaves), differentiated(local, leaves), 1e-10)


@pytest.mark.parametrize("tau", [0.5, 0.05])
def test_of_libauc(tau):
    """Its loss is B - 1 times the source's gradient; it has the temperatures' gradients apart.

    It takes a whole batch for new or for known, so batches here are one or the other.
    """
    contrastive = pytest.importorskip("libauc.losses.contrastive")
    theirs = contrastive.GCLoss_v2(
        N=18, tau=tau, gamma=0.9, temperature_scheme="individual_learnable", rho=6.0, beta=1.0
    )
    state, temperatures = MovingAverage(18), torch.full((2, 18), tau)
    for step in range(7):
        samples = torch.arange(6) + 6 * (step % 3)

        def ours(x, y, temperatures, samples=samples):
            first, second = temperatures[:, samples]
            rows = contrastive_rows(x, y, (1, 1), logit_scale=(1 / first, 1 / second))
            return sogclr(rows, samples, state, rho=6.0)

        x, y = unit(6, 8), unit(6, 8)
        theirs.learnable_tau_img, theirs.learnable_tau_txt = temperatures[:, :, None].unbind()
        _, *got = differentiated(ours, (x, y, temperatures))
        _, *features = differentiated(
            lambda x, y, samples=samples: theirs(x, y, samples)[0], (x, y)
        )
        grads = torch.stack([theirs.grad_tau_img, theirs.grad_tau_txt])[:, :, 0]
        for a, b in zip(got[:2], features, strict=True):
            torch.testing.assert_close(5 * a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))
        seen = 12 * got[2].float()[:, samples]  # a mean of 6 rows, then of 2 directions
        torch.testing.assert_close(seen, grads[:, samples], rtol=1e-3, atol=1e-3)
        log_u = torch.stack([theirs.u1.log() + theirs.b1, theirs.u2.log() + theirs.b2])[:, :, 0]
        torch.testing.assert_close(state.log_u[:, samples], log_u[:, samples], rtol=0, atol=1e-4)
        temperatures = temperatures - 1e-3 * torch.rand(2, 18)


def test_two_views_of_libauc_at_the_first_visit():
    """Later its u is another one: of both views together, and without the positive in it."""
    contrastive = pytest.importorskip("libauc.losses.contrastive")
    theirs, samples = contrastive.GCLoss_v1(N=12, tau=0.1), torch.tensor([3, 1, 4, 11, 5, 9])

    def ours(x, y):
        rows = two_views(normalize(x), normalize(y), logit_scale=10.0)
        return sogclr(rows, samples, MovingAverage(12))

    leaves = torch.randn(6, 8), torch.randn(6, 8)
    _, *got = differentiated(ours, leaves)
    _, *expected = differentiated(lambda x, y: theirs(x, y, samples), leaves)
    for a, b in zip(got, expected, strict=True):  # a mean over 12 rows, and a sum of two means
        torch.testing.assert_close(2 * a, b, rtol=1e-4, atol=1e-6)


def _ranked(x, y, tau, rows, cols, group):
    state, samples = MovingAverage(9, dtype=x.dtype), torch.arange(9)[rows]
    for scale in (1.0, 2.0):  # the second step has a state
        given = {
            "logit_scale": 1 / (scale * tau),
            "process_group": group,
            "text_queue": QUEUE.to(x),
        }
        value = sogclr(contrastive_rows(x[rows], y[cols], (1, 1), **given), samples, state)
    return value


def test_over_two_ranks_with_a_queue():
    """Where a pair stays on its rank: each rank's state has the pairs that it has seen."""
    leaves = unit(9, 8), unit(9, 8), torch.tensor(0.2)
    assert_same_on_ranks({"sogclr": _ranked}, leaves, (4, 5), (4, 5))


def test_a_pair_that_was_not_seen_takes_no_part_in_its_average():
    state = MovingAverage(4, gamma=0.25)
    state.update(torch.tensor([1, 3]), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    after = state.update(torch.tensor([3, 0]), torch.tensor([5.0, 0.0, 0.0, 7.0]))
    expected = torch.tensor([1.0, 3.0]).exp() * 0.75 + 0.25 * torch.tensor([5.0, 0.0]).exp()
    torch.testing.assert_close(after.view(2, 2)[:, 0].exp(), expected)
    assert after.view(2, 2)[:, 1].tolist() == [0.0, 7.0]
    assert (state.log_u[:, 2] == -torch.inf).all()
