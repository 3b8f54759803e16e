"""docs/recipes/more_modalities.py against a dense form and the package of its authors."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from docs.recipes.more_modalities import symile_loss
from tests.recipes.agreement import SEEDS, assert_agrees, assert_agrees_in_16_bits, unit
from tests.support.processes import results

B = 9


def modalities(n: int) -> dict[str, Tensor]:
    """The scale keeps the margins below 20, above which PyTorch's softplus(z) is z."""
    scale = torch.tensor(9.0, dtype=torch.float64)
    return {**{f"modality_{k}": unit(B) for k in range(n)}, "logit_scale": scale}


def recipe(*, logit_scale: Tensor, backend: str, seed: int, **features: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    given = {"logit_scale": logit_scale, "backend": backend, "generator": generator}
    return symile_loss(list(features.values()), **given)


def dense(*, logit_scale: Tensor, seed: int, **features: Tensor) -> Tensor:
    """Number by number: sum_d of the product of the anchor's row and the others' rows."""
    generator = torch.Generator().manual_seed(seed)
    every, losses = list(features.values()), []
    for k, anchor in enumerate(every):
        others = every[:k] + every[k + 1 :]
        orders = [torch.randperm(B, generator=generator) for _ in others]
        for i in range(B):
            row = []
            for j in range(B):
                value = anchor[i]
                for other, order in zip(others, orders, strict=True):
                    value = value * other[i if i == j else order[j]]
                row.append(logit_scale * value.sum())
            losses.append(-torch.stack(row).log_softmax(0)[i])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_symile(backend, n, seed):
    torch.manual_seed(seed)
    assert_agrees(recipe, dense, modalities(n), backend, {"seed": seed})


def test_16_bit_features(backend):
    features = modalities(3)
    constants = {"seed": 0, "logit_scale": features.pop("logit_scale")}
    assert_agrees_in_16_bits(recipe, dense, features, backend, constants)


@pytest.mark.parametrize("n", [3, 4])
def test_symile_of_its_package(backend, n):
    """It draws its permutations with torch.randperm, anchor after anchor, as the recipe does."""
    theirs = pytest.importorskip("symile").Symile(negative_sampling="n")

    def of_package(*, logit_scale, seed, **features):
        torch.manual_seed(seed)
        return theirs(list(features.values()), logit_scale)

    assert_agrees(recipe, of_package, modalities(n), backend, {"seed": 3})


def test_without_a_generator_every_call_permutes_anew():
    features = [unit(B) for _ in range(3)]
    torch.manual_seed(0)
    first, second = (symile_loss(features, logit_scale=9.0) for _ in range(2))
    assert first != second
    torch.manual_seed(0)
    assert symile_loss(features, logit_scale=9.0) == first


def on_a_rank(rank: int, world: int, features: list[Tensor]) -> tuple[Tensor, ...]:
    """Every rank permutes its own rows; the other ranks' rows are negatives too."""
    torch.manual_seed(rank)
    own = [f[[slice(0, 4), slice(4, B)][rank]].clone().requires_grad_() for f in features]
    loss = symile_loss(own, logit_scale=9.0, process_group=dist.group.WORLD)
    loss.backward()
    return loss.detach(), *(f.grad for f in own)


def test_over_ranks_is_one_process_with_the_permutations_of_both(monkeypatch):
    features = [unit(B) for _ in range(3)]
    drawn = []
    for rank, rows in enumerate((4, 5)):
        torch.manual_seed(rank)
        drawn.append([torch.randperm(rows) + 4 * rank for _ in range(6)])
    together = iter([torch.cat(orders) for orders in zip(*drawn, strict=True)])
    ranks = results(2, on_a_rank, features)
    leaves = [f.clone().requires_grad_() for f in features]
    with monkeypatch.context() as patched:
        patched.setattr(torch, "randperm", lambda *_, **__: next(together))
        loss = symile_loss(leaves, logit_scale=9.0)
    loss.backward()
    for made in ranks:
        torch.testing.assert_close(made[0], loss.detach())
    for k, leaf in enumerate(leaves):
        gradient = torch.cat([made[1 + k] for made in ranks]) / 2
        torch.testing.assert_close(gradient, leaf.grad)
