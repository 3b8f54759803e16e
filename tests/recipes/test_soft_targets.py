"""docs/recipes/soft_targets.py against dense forms, M3CoL's own values and other packages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from docs.recipes.soft_targets import (
    LowRank,
    class_table_loss,
    m3co_loss,
    mixed_pair_targets,
    mixed_pairs_loss,
    mixup_targets,
    soft_target_loss,
)
from tests.recipes.agreement import SEEDS, assert_agrees, assert_agrees_in_16_bits, unit
from tests.support.processes import results

SHAPES = [(5, 7), (9, 4)]


def soft_rows(S: Tensor, W: Tensor) -> Tensor:
    """(rows,) cross-entropy of every row; the weights of a row may have any total."""
    return -(W * S.log_softmax(1)).sum(1)


def dense_soft(image_features, text_features, targets, logit_scale, share=0.5):
    S = logit_scale * image_features @ text_features.T
    rows, columns = soft_rows(S, targets), soft_rows(S.T, targets.T)
    return share * rows.mean() + (1 - share) * columns.mean()


def features(M: int, N: int) -> dict[str, Tensor]:
    scale = torch.tensor(7.0, dtype=torch.float64)
    return {"image_features": unit(M), "text_features": unit(N), "logit_scale": scale}


def thinned(M: int, N: int) -> Tensor:
    """(M, N) weights, most of them 0; a row and a column without any."""
    W = torch.rand(M, N, dtype=torch.float64)
    W = W * (torch.rand(M, N) < 0.3)
    W[1], W[:, 2] = 0, 0
    W[0, 0] = 0.7
    return W


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("M", "N"), SHAPES)
@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_and_dense_targets(backend, M, N, sparse, seed):
    torch.manual_seed(seed)
    W = thinned(M, N)

    def recipe(targets, **given):
        return soft_target_loss(targets=targets.to_sparse() if sparse else targets, **given)

    assert_agrees(recipe, dense_soft, features(M, N), backend, {"targets": W})


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("M", "N"), SHAPES)
def test_targets_of_low_rank_and_their_gradient(backend, M, N, seed):
    torch.manual_seed(seed)
    factors = {"left": torch.rand(M, 2).double(), "right": torch.rand(N, 2).double()}

    def recipe(left, right, **given):
        return soft_target_loss(targets=LowRank(left, right), **given)

    def dense(left, right, **given):
        return dense_soft(targets=left @ right.T, **given)

    assert_agrees(recipe, dense, {**features(M, N), **factors}, backend)


@pytest.mark.parametrize("sparse", [True, False])
def test_16_bit_features(backend, sparse):
    def recipe(targets, **given):
        return soft_target_loss(targets=targets.to_sparse() if sparse else targets, **given)

    constants = {"targets": thinned(5, 7), "logit_scale": torch.tensor(7.0)}
    inputs = {"image_features": unit(5), "text_features": unit(7)}
    assert_agrees_in_16_bits(recipe, dense_soft, inputs, backend, constants)


def test_weights_of_rows_and_directions(backend):
    weights = torch.rand(5).double(), torch.rand(7).double()

    def recipe(targets, weights, **given):
        options = {"image_weights": weights[0], "text_weights": weights[1]}
        return soft_target_loss(targets=targets, image_to_text_weight=0.2, **options, **given)

    def dense(image_features, text_features, targets, weights, logit_scale):
        S = logit_scale * image_features @ text_features.T
        rows, columns = soft_rows(S, targets), soft_rows(S.T, targets.T)
        means = [(w * r).sum() / w.sum() for w, r in zip(weights, (rows, columns), strict=True)]
        return 0.2 * means[0] + 0.8 * means[1]

    constants = {"targets": thinned(5, 7), "weights": weights}
    assert_agrees(recipe, dense, features(5, 7), backend, constants)


def test_a_scale_for_each_row(backend):
    def recipe(image_scale, text_scale, **given):
        return soft_target_loss(logit_scale=(image_scale, text_scale), **given)

    def dense(image_features, text_features, targets, image_scale, text_scale):
        S = image_features @ text_features.T
        rows = soft_rows(image_scale[:, None] * S, targets)
        columns = soft_rows(text_scale[:, None] * S.T, targets.T)
        return (rows.mean() + columns.mean()) / 2

    given = features(5, 7)
    del given["logit_scale"]
    given |= {"image_scale": 3 + 5 * torch.rand(5), "text_scale": 3 + 5 * torch.rand(7)}
    assert_agrees(recipe, dense, given, backend, {"targets": thinned(5, 7)})


@pytest.mark.parametrize("by_classes", [False, True])
def test_columns_of_a_queue_have_no_target(backend, by_classes):
    queue = unit(6)

    def recipe(targets, queue, **given):
        if not by_classes:
            return soft_target_loss(targets=targets, text_queue=queue, **given)
        given |= {"classes": (torch.zeros(5).long(), torch.zeros(7).long())}
        return class_table_loss(table=targets.new_ones(1, 1), text_queue=queue, **given)

    def dense(image_features, text_features, targets, queue, logit_scale):
        S = logit_scale * image_features @ torch.cat([text_features, queue]).T
        W = torch.cat([targets, torch.zeros(5, 6)], 1)
        columns = soft_rows(S[:, :7].T, targets.T / (targets.sum(0)[:, None] if by_classes else 1))
        return (soft_rows(S, W).mean() + columns.mean()) / 2

    targets = torch.full((5, 7), 1 / 7, dtype=torch.float64) if by_classes else thinned(5, 7)
    constants = {"targets": targets, "queue": queue}
    assert_agrees(recipe, dense, features(5, 7), backend, constants)


@pytest.mark.parametrize("name", ["image_offsets", "text_offsets"])
def test_offsets_which_the_target_would_lack_are_refused(name):
    x, y = unit(5), unit(7)
    classes = torch.zeros(5).long(), torch.zeros(7).long()
    options = {"logit_scale": 7.0, name: torch.zeros(5)}
    with pytest.raises(TypeError, match="soft targets take no image_offsets or text_offsets"):
        soft_target_loss(x, y, torch.ones(5, 7), **options)
    with pytest.raises(TypeError, match="soft targets take no image_offsets or text_offsets"):
        class_table_loss(x, y, classes, torch.ones(1, 1), **options)


@pytest.mark.parametrize("seed", SEEDS)
def test_mixup_targets(seed):
    torch.manual_seed(seed)
    partners, shares = torch.randint(6, (6,)), torch.rand(6)
    W = torch.zeros(6, 6)
    for i in range(6):
        W[i, i] += shares[i]
        W[i, partners[i]] += 1 - shares[i]
    torch.testing.assert_close(mixup_targets(partners, shares).to_dense(), W)


SAVED = json.loads((Path(__file__).parent / "m3col.json").read_text())


def of_m3col(mixing: dict) -> Tensor:
    """W of its code: where a row is its own partner, 1 - its share replaces the share."""
    partners = torch.tensor(mixing["partners"])
    shares = torch.tensor(mixing["shares"], dtype=torch.float64)
    W = mixup_targets(partners, shares).to_dense()
    own = partners == torch.arange(len(partners))
    return W.diagonal_scatter(torch.where(own, 1 - shares, W.diagonal()))


def mixed(features: Tensor, mixing: dict) -> Tensor:
    shares = torch.tensor(mixing["shares"], dtype=torch.float64).to(features)[:, None]
    return normalize(shares * features + (1 - shares) * features[mixing["partners"]], dim=1)


@pytest.mark.parametrize("case", SAVED["cases"], ids=lambda case: case["kind"])
def test_values_of_m3col(backend, case):
    """Its two losses one by one, with the gradients of what goes into the mixture."""
    inputs = {n: torch.tensor(case[n], dtype=torch.float64) for n in ("images", "texts")}
    of_images, of_texts = case["mixed_images"], case["mixed_texts"]
    s = 1 / case["temperature"]

    def recipe(images, texts, targets, **given):
        return m3co_loss(
            normalize(images, dim=1),
            normalize(texts, dim=1),
            mixed(images, of_images),
            mixed(texts, of_texts),
            *(W.to_sparse() for W in targets),
            logit_scale=s,
            **given,
        )

    def saved(images, texts, targets):
        """A function with the saved values and gradients: both losses are added."""
        gradients = [
            sum(
                torch.tensor(m[f"gradient_{n}"], dtype=torch.float64) for m in (of_images, of_texts)
            )
            for n in ("images", "texts")
        ]
        linear = ((images - images.detach()) * gradients[0]).sum()
        linear = linear + ((texts - texts.detach()) * gradients[1]).sum()
        return of_images["loss"] + of_texts["loss"] + linear

    constants = {"targets": [of_m3col(of_images), of_m3col(of_texts)]}
    assert_agrees(recipe, saved, inputs, backend, constants)


def test_m3col_is_its_formula_where_no_row_is_its_own_partner():
    for case in SAVED["cases"]:
        for mixing in (case["mixed_images"], case["mixed_texts"]):
            partners = torch.tensor(mixing["partners"])
            shares = torch.tensor(mixing["shares"], dtype=torch.float64)
            same = torch.equal(of_m3col(mixing), mixup_targets(partners, shares).to_dense())
            own = bool((partners == torch.arange(len(partners))).any())
            assert same is not own


def dense_mixed(image_features, text_features, mixtures, owners, targets, logit_scale):
    """Row by row: the texts, and the mixtures of the row."""
    losses = []
    for i, x in enumerate(image_features):
        own = (owners == i).nonzero()[:, 0]
        columns = torch.cat([text_features, mixtures[own].detach()])
        W = torch.cat([targets[i, : len(text_features)], targets[i, len(text_features) + own]])
        losses.append(-(W * (logit_scale * columns @ x).log_softmax(0)).sum())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("seed", SEEDS)
def test_mixed_pairs(backend, seed):
    """Mixtures of two texts for images, as positives and as negatives; an image without one."""
    torch.manual_seed(seed)
    image_labels, text_labels = torch.tensor([1, 2, 2, 4, 6]), torch.tensor([2, 1, 3, 2, 5, 9, 4])
    inputs = features(5, 7)
    owners = torch.randint(5, (9,))
    is_positive = torch.rand(9) < 0.5
    W = torch.zeros(5, 16, dtype=torch.float64)
    W[:, :7] = image_labels[:, None] == text_labels
    W[owners[is_positive], 7 + is_positive.nonzero()[:, 0]] = 1
    W = W / W.sum(1, keepdim=True).clamp(min=1)

    def recipe(text_features, owners, targets, **given):
        sparse = mixed_pair_targets(image_labels, text_labels, owners.cpu(), is_positive)
        torch.testing.assert_close(sparse.to_dense(), W.float())
        mixtures = torch.lerp(text_features[first], text_features[second], shares.to(targets))
        return mixed_pairs_loss(
            text_features=text_features,
            mixtures=mixtures,
            owners=owners,
            targets=targets.to_sparse(),
            **given,
        )

    def dense(text_features, **given):
        mixtures = torch.lerp(text_features[first], text_features[second], shares)
        return dense_mixed(text_features=text_features, mixtures=mixtures, **given)

    first, second, shares = *torch.randint(7, (2, 9)), torch.rand(9, 1).double()
    assert_agrees(recipe, dense, inputs, backend, {"owners": owners, "targets": W})


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("M", "N"), SHAPES)
def test_class_table(backend, M, N, seed):
    torch.manual_seed(seed)
    classes = torch.randint(3, (M,)), torch.randint(4, (N,))
    table = torch.rand(3, 4).double() + 0.1

    def dense(image_features, text_features, classes, table, logit_scale):
        W = table[classes[0]][:, classes[1]]
        S = logit_scale * image_features @ text_features.T
        rows = soft_rows(S, W / W.sum(1, keepdim=True))
        columns = soft_rows(S.T, W.T / W.T.sum(1, keepdim=True))
        return (rows.mean() + columns.mean()) / 2

    inputs = {**features(M, N), "table": table}
    assert_agrees(class_table_loss, dense, inputs, backend, {"classes": classes})


def test_classes_without_weight_have_loss_0(backend):
    classes = torch.tensor([0, 1, 2, 0, 2]), torch.tensor([0, 1, 1, 0, 3, 1, 0])

    def dense(image_features, text_features, classes, table, logit_scale):
        same = (classes[0][:, None] == classes[1]).double()
        S = logit_scale * image_features @ text_features.T
        rows = soft_rows(S, same / same.sum(1, keepdim=True).clamp(min=1))
        columns = soft_rows(S.T, same.T / same.T.sum(1, keepdim=True).clamp(min=1))
        assert (rows == 0).sum() == 2 and (columns == 0).sum() == 1
        return (rows.mean() + columns.mean()) / 2

    constants = {"classes": classes, "table": torch.eye(4)}
    assert_agrees(class_table_loss, dense, features(5, 7), backend, constants)


def test_equal_classes_are_supcon_of_pytorch_metric_learning(backend):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    theirs = losses.SupConLoss(temperature=0.1)
    classes = torch.arange(9) % 4, torch.arange(14) % 4

    def dense(image_features, text_features, classes, table):
        images, texts = (image_features, classes[0]), (text_features, classes[1])
        return (
            theirs(*images, ref_emb=texts[0], ref_labels=texts[1])
            + theirs(*texts, ref_emb=images[0], ref_labels=images[1])
        ) / 2

    def recipe(image_features, text_features, **given):
        x, y = normalize(image_features, dim=1), normalize(text_features, dim=1)
        return class_table_loss(x, y, logit_scale=10.0, **given)

    inputs = {"image_features": unit(9), "text_features": unit(14)}
    assert_agrees(recipe, dense, inputs, backend, {"classes": classes, "table": torch.eye(4)})


ROWS, COLUMNS = [slice(0, 2), slice(2, 5)], [slice(0, 4), slice(4, 7)]  # of either rank


def on_a_rank(rank: int, world: int, inputs, of: Tensor | tuple) -> tuple[Tensor, ...]:
    """The loss of the whole batch, and the gradients of this rank's rows and of the table.

    ``of``: W (5, 7), or the classes.
    """
    own = ROWS[rank], COLUMNS[rank]
    sides = inputs["image_features"][own[0]], inputs["text_features"][own[1]]
    leaves = [t.clone().requires_grad_() for t in (*sides, inputs["table"])]
    options = {"logit_scale": 7.0, "process_group": dist.group.WORLD}
    if isinstance(of, Tensor):
        loss = soft_target_loss(*leaves[:2], of[own].to_sparse(), **options)
    else:
        classes = of[0][own[0]], of[1][own[1]]
        loss = class_table_loss(*leaves[:2], classes, leaves[2], **options)
    loss.backward()
    return loss.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.parametrize("by_classes", [False, True])
def test_over_ranks(by_classes):
    """The gradients that DDP averages are those of one process; rank 1 lacks a class of rank 0.

    Without classes the targets of a rank's rows are on the rank.
    """
    inputs = {**features(5, 7), "table": torch.rand(3, 4).double() + 0.1}
    leaves = [inputs[n].clone().requires_grad_() for n in inputs if n != "logit_scale"]
    if by_classes:
        of = torch.tensor([0, 1, 2, 2, 1]), torch.tensor([0, 1, 2, 3, 1, 2, 1])
        loss = class_table_loss(*leaves[:2], of, leaves[2], logit_scale=7.0)
    else:
        of = torch.block_diag(thinned(2, 4), thinned(3, 3))
        loss = soft_target_loss(*leaves[:2], of, logit_scale=7.0)
    loss.backward()
    first, second = results(2, on_a_rank, inputs, of)
    for made in (first, second):
        torch.testing.assert_close(made[0], loss.detach())
    for k in (0, 1):
        together = torch.cat([first[1 + k], second[1 + k]]) / 2
        torch.testing.assert_close(together, leaves[k].grad)
    if by_classes:
        torch.testing.assert_close((first[3] + second[3]) / 2, leaves[2].grad)
