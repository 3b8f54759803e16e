"""docs/recipes/metric_learning.py against matrices, pytorch-metric-learning and lightly."""

from functools import partial

import pytest
import torch
from torch.nn.functional import normalize

from docs.recipes.metric_learning import (
    alignment,
    dclw,
    mlcd,
    multi_similarity,
    two_views,
    uniformity,
    without_itself,
)
from mxm_kernels import contrastive_rows
from tests.recipes.same import (
    QUEUE,
    assert_close,
    assert_same,
    assert_same_on_ranks,
    differentiated,
    spread_ids,
    unit,
)

SEEDS = [0, 1, 2]
IDS = {  # some rows have no positive
    "ragged": lambda: (spread_ids(9, 5), spread_ids(13, 7)),
    "pairs": lambda: (torch.arange(8), torch.arange(8)),
    "one instance": lambda: (torch.zeros(4).long(), torch.zeros(3).long()),
}


def rows_of(backend, x, y, ids, scale, **options):
    ids = tuple(i.to(x.device) for i in ids)
    return contrastive_rows(x, y, ids, logit_scale=scale, backend=backend.name, **options)


def both(row_loss, S, same, counted=None):
    """The mean over rows of a loss of a row, and the average of both directions."""
    sides = []
    for s, p in ((S, same), (S.T, same.T)):
        losses = torch.stack([row_loss(*row) for row in zip(s, p, strict=True)])
        sides.append(losses[p.any(1)].mean() if counted == "positive" else losses.mean())
    return sum(sides) / 2


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["ragged", "pairs"])
def test_alignment(backend, kind, seed):
    torch.manual_seed(seed)
    ids = IDS[kind]()
    same = ids[0][:, None] == ids[1]

    def dense(x, y, scale):
        squares = (x[:, None] - y).square().sum(2) - x.square().sum(1)[:, None] - y.square().sum(1)
        return both(lambda d, p: d[p].mean(), 2 + squares, same, "positive") + 0 * scale

    def ours(x, y, scale):
        return alignment(rows_of(backend, x, y, ids, scale))

    leaves = unit(len(ids[0]), 8), unit(len(ids[1]), 8)
    assert_same(backend, ours, dense, *leaves, torch.tensor(4.0))
    x, y = (leaf.double() for leaf in leaves)
    squares = (x[:, None] - y).square().sum(2)  # of rows of length 1
    expected = both(lambda d, p: d[p].mean(), squares, same, "positive")
    torch.testing.assert_close(dense(x, y, 4.0), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("t", [0.5, 2.0, 4.0])
def test_uniformity_within_one_modality(backend, t, seed):
    """The source's: over all pairs of distinct rows."""
    torch.manual_seed(seed)

    def dense(x):
        square = x.square().sum(1).mean().detach()  # 1 but for rounding
        distances = torch.pdist(x).square() + 0 * square
        products = x @ x.T
        pairs = torch.triu_indices(len(x), len(x), 1)
        flat = 2 - 2 * products[pairs[0], pairs[1]]
        torch.testing.assert_close(flat, distances, rtol=0, atol=1e-6)
        return (-t * flat).exp().mean().log()

    def ours(x):
        return uniformity(contrastive_rows(x, x, (1, 1), logit_scale=2 * t, backend=backend.name))

    assert_same(backend, ours, dense, unit(11, 8))


@pytest.mark.parametrize("seed", SEEDS)
def test_uniformity_between_two_modalities(backend, seed):
    torch.manual_seed(seed)
    ids = torch.arange(9) % 6, torch.arange(12) % 7
    same = ids[0][:, None] == ids[1]

    def dense(x, y, scale):
        potentials = (scale * x @ y.T - scale).exp()
        return both(lambda e, p: e[~p].mean(), potentials, same).log()

    def ours(x, y, scale):
        return uniformity(rows_of(backend, x, y, ids, scale))

    assert_same(backend, ours, dense, unit(9, 8), unit(12, 8), torch.tensor(4.0))


def ms_row(alpha, beta, base):
    """The loss of a row of cosines, as the source has it."""

    def loss(c, p):
        pull = (-alpha * (c[p] - base)).exp().sum().log1p() / alpha
        return pull + (beta * (c[~p] - base)).exp().sum().log1p() / beta

    return loss


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize(("alpha", "base"), [(2.0, 0.5), (7.0, 0.1)])
def test_multi_similarity(backend, kind, alpha, base, seed):
    torch.manual_seed(seed)
    ids = IDS[kind]()
    same = ids[0][:, None] == ids[1]

    def dense(x, y, beta):
        return both(ms_row(alpha, beta, base), x @ y.T, same)

    def ours(x, y, beta):
        return multi_similarity(rows_of(backend, x, y, ids, beta), alpha, base)

    leaves = unit(len(ids[0]), 8), unit(len(ids[1]), 8), torch.tensor(30.0)
    assert_same(backend, ours, dense, *leaves)


@pytest.mark.parametrize("seed", SEEDS)
def test_multi_similarity_within_one_modality(backend, seed):
    torch.manual_seed(seed)
    ids = spread_ids(12, 5)

    def dense(x, beta):
        row, c, same = ms_row(2.0, beta, 0.5), x @ x.T, ids[:, None] == ids
        others = [torch.arange(12) != i for i in range(12)]
        return torch.stack([row(c[i][o], same[i][o]) for i, o in enumerate(others)]).mean()

    def ours(x, beta):
        rows = rows_of(backend, x, x, (ids, ids), beta)
        return multi_similarity(without_itself(rows, ids.to(x.device)))

    assert_same(backend, ours, dense, unit(12, 8), torch.tensor(30.0))


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize(("alpha", "beta", "base"), [(2, 50, 0.5), (4, 20, 0.2)])
def test_multi_similarity_of_pytorch_metric_learning(alpha, beta, base, within):
    """It has the features' length in its distance, and is given rows of length 1."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    theirs = losses.MultiSimilarityLoss(alpha=alpha, beta=beta, base=base)
    ids = spread_ids(12, 4), spread_ids(15, 5)

    def ours(x, y):
        x, y = normalize(x), normalize(y)
        if within:
            rows = contrastive_rows(x, x, (ids[0], ids[0]), logit_scale=float(beta))
            return multi_similarity(without_itself(rows, ids[0]), alpha, base) + 0 * y.sum()
        rows = contrastive_rows(x, y, ids, logit_scale=float(beta))
        return multi_similarity(rows, alpha, base)

    def expected(x, y):
        if within:
            return theirs(x, ids[0]) + 0 * y.sum()
        one = theirs(x, ids[0], ref_emb=y, ref_labels=ids[1])
        return (one + theirs(y, ids[1], ref_emb=x, ref_labels=ids[0])) / 2

    leaves = [f.double() for f in (torch.randn(12, 8), torch.randn(15, 8))]
    assert_close(differentiated(ours, leaves), differentiated(expected, leaves), 1e-8)


def dense_mlcd(x, centres, scale, labels):
    """Image by image: its centres, and all others."""
    losses = []
    for row, own in zip(scale * x @ centres.T, labels, strict=True):
        others = torch.ones(len(centres), dtype=torch.bool)
        others[own] = False
        losses.append(row[others].exp().sum().log1p() + (-row[own]).exp().sum().log1p())
    return torch.stack(losses).mean()


LABELS = {  # of 9 images among 13 centres
    "one": lambda: torch.randint(13, (9, 1)),
    "three": lambda: torch.stack([torch.randperm(13)[:3] for _ in range(9)]),
    "the same three": lambda: torch.tensor([[3, 12, 0]]).repeat(9, 1),
    "every centre": lambda: (torch.arange(18) % 13).view(9, 2),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", LABELS)
def test_mlcd(backend, kind, seed):
    torch.manual_seed(seed)
    labels = LABELS[kind]()

    def ours(x, centres, scale):
        own = labels.to(x.device)
        return mlcd(x, centres, own, logit_scale=scale, backend=backend.name)

    def dense(x, centres, scale):
        return dense_mlcd(x, centres, scale, labels)

    assert_same(backend, ours, dense, unit(9, 8), unit(13, 8), torch.tensor(12.0))


def test_mlcd_is_the_multi_similarity_of_one_exponent():
    """With one label for each image, and the images' rows alone."""
    x, y, labels = unit(9, 8), unit(13, 8), torch.randint(13, (9, 1))
    given = {"logit_scale": 12.0, "image_to_text_weight": 1.0}
    rows = contrastive_rows(x, y, (labels[:, 0], torch.arange(13)), **given)
    expected = 12 * multi_similarity(rows, alpha=12.0, base=0.0)
    torch.testing.assert_close(mlcd(x, y, labels, logit_scale=12.0), expected)


def test_queued_centres_are_negatives_of_mlcd():
    x, y, labels = unit(9, 8), unit(13, 8), LABELS["three"]()
    queued = mlcd(x, y, labels, logit_scale=12.0, text_queue=QUEUE)
    torch.testing.assert_close(queued, mlcd(x, torch.cat([y, QUEUE]), labels, logit_scale=12.0))


def dense_dclw(x, y, scale, sigma):
    """View by view, image by image."""
    losses, pairs = [], (x * y).sum(1)
    shares = (pairs / sigma).exp() / (pairs / sigma).exp().mean()
    for a, b in ((x, y), (y, x)):
        for i in range(len(x)):
            others = [j for j in range(len(x)) if j != i]
            negatives = torch.cat([a[others] @ a[i], b[others] @ a[i]])
            weight = (2 - shares[i]).detach()
            losses.append((scale * negatives).exp().sum().log() - weight * scale * a[i] @ b[i])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("images", [2, 7, 10])
def test_dclw(backend, images, seed):
    torch.manual_seed(seed)

    def ours(x, y, scale):
        return dclw(two_views(x, y, logit_scale=scale, backend=backend.name), 0.4)

    def dense(x, y, scale):
        return dense_dclw(x, y, scale, 0.4)

    assert_same(backend, ours, dense, unit(images, 8), unit(images, 8), torch.tensor(9.0))


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("sigma", [0.5, 0.2])
def test_dclw_of_lightly(sigma):
    lightly = pytest.importorskip("lightly.loss")
    theirs = lightly.DCLWLoss(temperature=0.1, sigma=sigma)

    def ours(x, y):
        return dclw(two_views(normalize(x), normalize(y), logit_scale=10.0), sigma)

    leaves = [torch.randn(12, 8).double() for _ in range(2)]
    assert_close(differentiated(ours, leaves), differentiated(theirs, leaves), 1e-8)


def test_two_views_count_the_negatives_of_both():
    rows = two_views(unit(7, 8), unit(7, 8), logit_scale=10.0)
    assert rows.num_negatives.tolist() == [12] * 14


def _ranked(loss, ids, x, y, scale, rows, cols, group):
    own, queue = (ids[0][rows], ids[1][cols]), QUEUE.to(x)
    options = {"process_group": group, "text_queue": queue, "image_queue": queue}
    return loss(contrastive_rows(x[rows], y[cols], own, logit_scale=scale, **options))


def _views(x, y, scale, rows, cols, group):
    made = two_views(x[rows], y[cols], logit_scale=scale, process_group=group)
    return made.mean(made.neg_lse - made.positives - made.num_negatives.log())


def test_over_two_ranks_with_queues():
    ids = spread_ids(9, 5), spread_ids(13, 7)
    leaves = unit(9, 8), unit(13, 8), torch.tensor(12.0)
    recipes = alignment, uniformity, multi_similarity
    losses = {recipe.__name__: partial(_ranked, recipe, ids) for recipe in recipes}
    assert_same_on_ranks(losses, leaves, (4, 5), (7, 6))


def test_two_views_over_two_ranks():
    leaves = unit(9, 8), unit(9, 8), torch.tensor(9.0)
    assert_same_on_ranks({"two views": _views}, leaves, (4, 5), (4, 5))


@pytest.mark.parametrize("recipe", [uniformity, multi_similarity])
def test_queued_rows_are_negatives(recipe):
    """As texts that no image is paired with, for the images alone."""
    ids, x, y = (spread_ids(9, 5), spread_ids(13, 7)), unit(9, 8), unit(13, 8)
    longer = torch.cat([ids[1], torch.arange(100, 105)])
    given = {"logit_scale": 12.0, "image_to_text_weight": 1.0}
    queued = contrastive_rows(x, y, ids, text_queue=QUEUE, **given)
    whole = contrastive_rows(x, torch.cat([y, QUEUE]), (ids[0], longer), **given)
    torch.testing.assert_close(recipe(queued), recipe(whole))
