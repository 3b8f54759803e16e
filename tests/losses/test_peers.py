"""The family against what other libraries ship, where they compute the same thing.

pytorch-metric-learning normalises features itself, which projects the gradient; so do ours here.
"""

import pytest
import torch
from torch.nn.functional import normalize

from mxm_kernels import (
    Folds,
    Queue,
    fused_decoupled_loss,
    fused_hard_loss,
    fused_info_nce_loss,
    fused_intra_modal_loss,
    fused_siglip_loss,
    fused_soft_loss,
    fused_supcon_loss,
)

TEMPERATURE = 0.1


def _compare(ours, theirs, *leaves):
    """Values and gradients of two functions of the same features."""
    results = []
    for function in (ours, theirs):
        copies = [leaf.clone().requires_grad_() for leaf in leaves]
        value = function(*copies)
        value.backward()
        results.append([value.detach(), *(c.grad for c in copies)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def _features(rows=12):
    return normalize(torch.randn(rows, 8)), normalize(torch.randn(rows, 8))


def test_clip_loss_of_open_clip():
    loss = pytest.importorskip("open_clip.loss").ClipLoss()
    scale = torch.tensor(1 / TEMPERATURE)
    _compare(lambda x, y, s: fused_info_nce_loss(x, y, logit_scale=s), loss, *_features(), scale)


def test_distill_clip_loss_of_open_clip():
    loss = pytest.importorskip("open_clip.loss").DistillClipLoss()
    tx, ty = _features()
    teacher = {"teacher_image_features": tx, "teacher_text_features": ty}

    def ours(x, y, s):
        contrastive = fused_info_nce_loss(x, y, logit_scale=s)
        soft = fused_soft_loss(x, y, logit_scale=s, teacher_logit_scale=20.0, **teacher)
        return contrastive + 2 * soft

    def theirs(x, y, s):
        contrastive, distill = loss(x, y, s, tx, ty, torch.tensor(20.0))
        return contrastive + 2 * distill

    _compare(ours, theirs, *_features(), torch.tensor(1 / TEMPERATURE))


def test_siglip_loss_of_open_clip():
    loss = pytest.importorskip("open_clip.loss").SigLipLoss()

    def ours(x, y, s, b):
        return fused_siglip_loss(x, y, logit_scale=s, logit_bias=b)

    _compare(ours, loss, *_features(), torch.tensor(10.0), torch.tensor(-10.0))


def test_supcon_of_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    loss = losses.SupConLoss(temperature=TEMPERATURE)
    x, y = normalize(torch.randn(9, 8)), normalize(torch.randn(14, 8))
    image_ids, text_ids = torch.arange(9) % 4, torch.arange(14) % 4

    def theirs(x, y):
        forward = loss(x, image_ids, ref_emb=y, ref_labels=text_ids)
        return (forward + loss(y, text_ids, ref_emb=x, ref_labels=image_ids)) / 2

    def ours(x, y):
        return fused_supcon_loss(
            normalize(x), normalize(y), (image_ids, text_ids), logit_scale=1 / TEMPERATURE
        )

    _compare(ours, theirs, x, y)


def test_supcon_inside_one_modality_of_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    loss, ids = losses.SupConLoss(temperature=TEMPERATURE), torch.arange(12) % 5

    def ours(x):
        return fused_intra_modal_loss(
            normalize(x), ids, logit_scale=1 / TEMPERATURE, mask_positives=False
        )

    _compare(ours, lambda x: loss(x, ids), _features()[0])


def test_ntxent_of_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    loss = losses.NTXentLoss(temperature=1.0)  # it adds 1e-7 to probabilities: keep them large
    ids = torch.arange(12) // 3  # as many positives in every row: its mean is over pairs
    others = ids.clone()  # of the same tensor it would leave out the diagonal

    def theirs(x, y):
        forward = loss(x, ids, ref_emb=y, ref_labels=others)
        return (forward + loss(y, ids, ref_emb=x, ref_labels=others)) / 2

    def ours(x, y):
        return fused_hard_loss(normalize(x), normalize(y), (3, 3), logit_scale=1.0, rounds=None)

    _compare(ours, theirs, *_features())


def _simclr(x, y):
    """Ours on two views of each image: the other view is the positive, all others negatives."""
    both = torch.cat([normalize(x), normalize(y)])
    ids = torch.arange(len(x)).repeat(2)
    return fused_intra_modal_loss(both, ids, logit_scale=1 / TEMPERATURE)


def test_ntxent_of_two_views_of_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    loss = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=TEMPERATURE))
    x, y = _features()
    torch.testing.assert_close(_simclr(x, y), loss(x, y), rtol=1e-3, atol=0)  # its 1e-7


def test_ntxent_of_lightly():
    loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature=TEMPERATURE)
    _compare(_simclr, loss, *_features())


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_multiple_negatives_ranking_of_sentence_transformers(columns):
    """Columns after the second are negatives of every anchor: rows with ids that none has."""
    losses = pytest.importorskip("sentence_transformers.losses")
    theirs = losses.MultipleNegativesRankingLoss(None, scale=20.0)
    ids = torch.arange(12)

    def ours(anchors, *documents):
        texts = normalize(torch.cat(documents), dim=1)
        folds = Folds.from_ids(ids, torch.arange(len(texts)))
        options = {"logit_scale": 20.0, "image_to_text_weight": 1.0}
        return fused_info_nce_loss(normalize(anchors), texts, folds, **options)

    embeddings = [torch.randn(12, 8) for _ in range(columns)]
    _compare(ours, lambda *e: theirs.compute_loss_from_embeddings(list(e), None), *embeddings)


def test_dcl_of_lightly():
    """Its negatives are those of both views; the row's own view comes in as a queue."""
    loss = pytest.importorskip("lightly.loss").DCLLoss(temperature=TEMPERATURE)
    x, y = _features()
    own = Folds.from_ids(range(12), range(12))
    ours = fused_decoupled_loss(
        x, y, logit_scale=1 / TEMPERATURE, text_queue=Queue(x, own), image_queue=Queue(y, own)
    )
    torch.testing.assert_close(ours, loss(x, y))
