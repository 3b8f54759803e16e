"""The statistics operator's contract with PyTorch: registration, autograd, determinism."""

import pytest
import torch

from mxm_kernels import Folds, fused_mfh_loss
from mxm_kernels.backends.interface import Statistics, Upstream
from mxm_kernels.ops.statistics import pack_saved, statistics
from tests.support.cases import NAMED_CASES
from tests.support.mfh import batch, loss_of
from tests.support.products import matrix_products
from tests.support.rules import rules_of

BUDGET = 1 << 26  # keeps S and T of these batches


@pytest.mark.parametrize("told", [False, True], ids=["plain", "told"])
@pytest.mark.parametrize("with_teacher", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(with_teacher, dtype, told, backend):
    if dtype not in backend.dtypes:
        pytest.skip(f"{backend} takes no {dtype}")
    x, y, (tx, ty), s, t = batch(backend, dtype)
    teacher = (tx, ty) if with_teacher else (None, None)
    of_teacher = s.detach() if with_teacher else None
    rules = rules_of(x, y, given=told, teacher=with_teacher)
    problem = (x, y, *teacher, s, of_teacher, *t.pair_tables(), *rules)
    arguments = (*problem, backend.name, False, True, BUDGET, True)
    torch.library.opcheck(torch.ops.mxm_kernels.statistics.default, arguments)


@pytest.mark.parametrize("told", [False, True], ids=["plain", "told"])
@pytest.mark.parametrize("needs", [[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_opcheck_of_the_backward(needs, told, backend):
    x, y, (tx, ty), s, t = batch(backend)
    x, y, s = x.detach(), y.detach(), s.detach()
    problem = (x, y, tx, ty, s, s.clone(), *t.pair_tables(), *rules_of(x, y, given=told))
    made = torch.ops.mxm_kernels.statistics(*problem, backend.name, False, True, 0, False)
    upstream = [torch.randn_like(output) for output in made[: len(Upstream._fields)]]
    torch.library.opcheck(
        torch.ops.mxm_kernels.statistics_backward.default,
        (
            *problem,
            *pack_saved(Statistics(*made)),
            *upstream,
            [*(bool(n) for n in needs), told],
            backend.name,
            0,
        ),
    )


def test_gradcheck(backend):
    if torch.float64 not in backend.dtypes:
        pytest.skip(f"{backend} takes no float64")
    x, y, teacher, s, tables = batch(backend, torch.float64)

    def differentiable(x, y, s):
        t = s.detach() * 0 + 17.0
        made = statistics(x, y, teacher, s, t, tables, backend.name, neg_sum=True)
        return made[: len(Upstream._fields)]

    torch.autograd.gradcheck(differentiable, (x, y, s))


@pytest.mark.parametrize("with_teacher", [True, False])
def test_rows_and_columns_far_below_the_greatest_logit(with_teacher, backend):
    """300 nats below: against a reference that they shared with it, all of their terms vanish."""
    count, s = 36, torch.tensor(150.0, device=backend.device)
    generator = torch.Generator().manual_seed(5)
    x, y = (torch.rand(count, 8, generator=generator) / 50 for _ in range(2))
    level = torch.where(torch.arange(count) % 3 == 0, -1.0, 1.0)
    x[:, 0], y[:, 0], x[:, 1], y[:, 1] = level, 1.0, 1.0, level.flip(0)
    x, y = x.to(backend.device).requires_grad_(), y.to(backend.device).requires_grad_()
    ids = torch.arange(count) // 2
    tables = Folds.from_ids(ids, ids).to(backend.device).tables(count, count, x.device)
    teacher = (x.detach().roll(1, 0), y.detach()) if with_teacher else None
    got = statistics(x, y, teacher, s, s / 2 if with_teacher else None, tables, backend.name)

    wide = [v.detach().cpu().double().requires_grad_() for v in (x, y)]
    S = 150 * wide[0] @ wide[1].T
    negatives = S.masked_fill(ids[:, None] == ids, -torch.inf)
    expected = {"neg_lse": torch.cat([negatives.logsumexp(1), negatives.logsumexp(0)])}
    if teacher is not None:
        T = 75 * teacher[0].cpu().double() @ teacher[1].cpu().double().T
        means = (T.softmax(1) * S).sum(1), (T.softmax(0) * S).sum(0)
        expected["teacher_mean"] = torch.cat(means)
    assert negatives.logsumexp(1).min() < negatives.logsumexp(1).max() - 290
    for name, value in expected.items():
        found = getattr(got, name).detach().cpu().double()
        torch.testing.assert_close(found, value.detach(), rtol=1e-5, atol=1e-4)
    # A row's gradients go into its own dx, where those of the others do not hide them.
    weights = torch.rand(len(expected), 2 * count, generator=generator)
    sum(
        (getattr(got, k) * w.to(x.device)).sum() for k, w in zip(expected, weights, strict=True)
    ).backward()
    sum((v * w).sum() for v, w in zip(expected.values(), weights, strict=True)).backward()
    for feature, of in zip((x, y), wide, strict=True):
        error = (feature.grad.cpu().double() - of.grad).norm(dim=1) / of.grad.norm(dim=1)
        assert error.max() < 1e-3


def test_a_pair_stands_in_the_list_twice(backend):
    x, y, _, s, tables = batch(backend)
    made = statistics(x, y, None, s, None, tables, backend.name)
    slots, texts = made.positives.split(tables.pairs)
    assert torch.equal(texts, slots[tables.text_slots])


@pytest.mark.parametrize("trained", ["image", "text", "scale"])
def test_a_frozen_tower_gets_no_gradient_and_costs_no_product(trained, backend):
    x, y, teacher, s, _ = batch(backend)
    loss_of(backend, x, y, teacher, s).backward()
    leaves = {"image": x.detach(), "text": y.detach(), "scale": s.detach()}
    leaf = leaves[trained].requires_grad_()
    loss = loss_of(backend, leaves["image"], leaves["text"], teacher, leaves["scale"])
    products = matrix_products(loss.backward)
    torch.testing.assert_close(leaf.grad, {"image": x, "text": y, "scale": s}[trained].grad)
    both = matrix_products(loss_of(backend, x, y, teacher, s).backward)
    assert both - products == (2 if trained == "scale" else 1)


def test_backward_twice_through_a_retained_graph(backend):
    x, y, teacher, s, _ = batch(backend)
    loss = loss_of(backend, x, y, teacher, s)
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    loss.backward()
    assert torch.equal(x.grad, 2 * first)


def test_second_derivatives_are_refused(backend):
    x, y, teacher, s, _ = batch(backend)
    (grad,) = torch.autograd.grad(loss_of(backend, x, y, teacher, s), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_runs_give_the_same_bits(dtype, backend):
    torch.use_deterministic_algorithms(False)
    runs = []
    for _ in range(2):
        x, y, teacher, s, _ = batch(backend, dtype, NAMED_CASES["several tiles and tails"])
        loss = fused_mfh_loss(
            x, y, NAMED_CASES["several tiles and tails"].ids, logit_scale=s,
            teacher_image_features=teacher[0], teacher_text_features=teacher[1],
            generator=torch.Generator().manual_seed(2), backend=backend.name,
        )  # fmt: skip
        loss.backward()
        runs.append([loss.detach(), x.grad, y.grad, s.grad])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
