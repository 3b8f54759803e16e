"""What docs/literature.md says of papers whose loss is in no recipe, against the dense form.

All in float64, values and gradients.
"""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from mxm_kernels import (
    contrastive_rows,
    fused_info_nce_loss,
    fused_intra_modal_loss,
    fused_soft_loss,
    fused_supcon_loss,
)

SCALE = 7.0
ONE_WAY = {"logit_scale": SCALE, "image_to_text_weight": 1.0}


@pytest.fixture(params=[0, 1, 2])
def features(request):
    """Makes features of length 1 that receive gradients."""
    generator = torch.Generator().manual_seed(request.param)

    def make(count, width=6):
        drawn = torch.randn(count, width, generator=generator, dtype=torch.float64)
        return normalize(drawn).requires_grad_()

    return make


def agree(ours, theirs, *leaves):
    """The same value and the same gradients."""
    made = [
        (*torch.autograd.grad(loss, leaves, retain_graph=True), loss) for loss in (ours, theirs)
    ]
    torch.testing.assert_close(*made)


def test_protoclip_has_the_softmax_of_the_centres_as_its_target(features):
    """By which centre the row has, and by how near the other modality's centres are."""
    x, centres, others = features(9), features(4), features(4).detach()
    labels = torch.arange(9) % 4
    ours = fused_soft_loss(
        x,
        centres,
        teacher_image_features=others[labels],
        teacher_text_features=others,
        teacher_logit_scale=3.0,
        **ONE_WAY,
    )
    targets = (3.0 * others[labels] @ others.T).softmax(1)
    agree(ours, cross_entropy(SCALE * x @ centres.T, targets), x, centres)


def test_esimcse_has_a_queue_beside_the_batch(features):
    x, y, queue = features(5), features(5), features(8).detach()
    ours = fused_info_nce_loss(x, y, text_queue=queue, **ONE_WAY)
    logits = SCALE * x @ torch.cat([y, queue]).T
    agree(ours, cross_entropy(logits, torch.arange(5)), x, y)


@pytest.mark.parametrize("own", [[7, 0, 3, 10], [2, 5, 2, 2, 9]], ids=["pieces", "classes"])
def test_rows_find_their_own_in_a_table(features, own):
    """Masked pieces among all pieces (ONE-PEACE), or the texts of their classes (X-CLIP)."""
    x, table, own = features(len(own)), features(11), torch.tensor(own)
    ours = fused_info_nce_loss(x, table, (own, torch.arange(11)), **ONE_WAY)
    agree(ours, cross_entropy(SCALE * x @ table.T, own), x, table)


def test_sepclr_s_term_against_leakage_has_both_features_side_by_side(features):
    """log mean_j exp(-(|c_i - c_j|^2 + |s_i - s_j|^2) / 2t), the row itself included."""
    leaves = features(7), features(7, 3)
    c, s = map(normalize, leaves)  # the gradients are those along the sphere
    both, ids = torch.cat([c, s], 1), torch.arange(7)
    rows = contrastive_rows(both, both, (ids, ids), logit_scale=SCALE)
    joint = torch.logaddexp(rows.neg_lse, rows.sum(rows.positives))
    ours = rows.mean(joint - 2 * SCALE - torch.log(torch.tensor(7.0, dtype=torch.float64)))
    squares = [(f[:, None] - f).square().sum(2) for f in (c, s)]
    theirs = (-SCALE / 2 * sum(squares)).exp().mean(1).log().mean()
    agree(ours, theirs, *leaves)


def test_mcl_has_negatives_of_the_row_s_cluster_alone(features):
    x, y, clusters = features(9), features(9), torch.tensor([0, 1, 0, 2, 2, 0, 1, 1, 0])
    ours = fused_info_nce_loss(x, y, logit_scale=SCALE, within_ids=(clusters, clusters))
    elsewhere, own = clusters[:, None] != clusters, torch.arange(9)
    logits = (SCALE * x @ y.T).masked_fill(elsewhere, -torch.inf)
    agree(ours, (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2, x, y)


def test_mcl_in_one_modality(features):
    x, clusters = features(8), torch.tensor([0, 1, 0, 1]).repeat(2)
    views = torch.arange(4).repeat(2)
    ours = fused_intra_modal_loss(x, views, logit_scale=SCALE, within_ids=clusters)
    elsewhere = clusters[:, None] != clusters
    logits = (SCALE * x @ x.T).masked_fill(elsewhere | torch.eye(8, dtype=torch.bool), -torch.inf)
    agree(ours, cross_entropy(logits, torch.arange(8).roll(4)), x)


def test_the_feature_transformation_has_the_negatives_of_its_queue_alone(features):
    x, y, queue = features(5), features(5), features(8).detach()
    mixed = 1.3 * x - 0.3 * y, 1.3 * y - 0.3 * x, 0.6 * queue + 0.4 * queue.flip(0)
    no_other = torch.zeros(5, dtype=torch.long)
    ours = fused_info_nce_loss(
        *mixed[:2], text_queue=mixed[2], exclude_ids=(no_other, no_other), **ONE_WAY
    )
    pairs = (mixed[0] * mixed[1]).sum(1, keepdim=True)
    logits = SCALE * torch.cat([pairs, mixed[0] @ mixed[2].T], 1)
    agree(ours, cross_entropy(logits, no_other), x, y)


def test_compa_has_more_positives_and_negatives_that_one_row_alone_sees(features):
    x, y, more = features(4), features(4), features(12)  # 1 positive, 2 negatives more of each
    rows, owners = torch.arange(4), torch.arange(4).repeat_interleave(3)
    right = torch.tensor([True, False, False]).repeat(4)
    ids = torch.cat([rows, torch.where(right, owners, 99)])
    seen_by = torch.cat([torch.full((4,), -1), owners])
    texts = torch.cat([y, more])
    ours = fused_supcon_loss(x, texts, (rows, ids), within_ids=(rows, seen_by), **ONE_WAY)
    hidden = (seen_by >= 0) & (seen_by != rows[:, None])
    logits = (SCALE * x @ texts.T).masked_fill(hidden, -torch.inf)
    theirs = -logits.log_softmax(1)[ids == rows[:, None]].mean()  # 2 positives of each
    agree(ours, theirs, x, y, more)
