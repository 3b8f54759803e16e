"""The reference itself, against the loss that one positive a row is known by."""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from reference.mfh import group_matrix
from reference.siglip import siglip_loss, siglip_rows

X, Y = (normalize(torch.randn(5, 4, dtype=torch.float64), dim=1) for _ in range(2))


def test_one_pair_each_is_binary_cross_entropy():
    ids, logits = torch.arange(5), 9.0 * X @ Y.T - 3.0
    expected = binary_cross_entropy_with_logits(
        logits, torch.eye(5, dtype=torch.float64), reduction="sum"
    )
    torch.testing.assert_close(siglip_loss(X, Y, ids, ids, scale=9.0, bias=-3.0), expected / 5)


def test_several_positives_by_hand():
    zero = torch.zeros(2, 3, dtype=torch.float64)
    loss = siglip_loss(zero, zero, torch.tensor([0, 0]), torch.tensor([0, 1]), scale=1.0, bias=2.0)
    # Each of the two rows: one positive of logit 2, one negative of logit 2.
    two = torch.tensor(2.0, dtype=torch.float64)
    torch.testing.assert_close(loss, (1 + (-two).exp()).log() + (1 + two.exp()).log())


def test_the_rows_add_up_to_the_loss():
    ids, S, bias = torch.tensor([0, 1, 0, 2, 1]), 9.0 * X @ Y.T, torch.tensor(-3.0)
    same = group_matrix(ids, ids)
    rows = siglip_rows(S, same, ~same, torch.ones_like(S), bias=bias)
    expected = siglip_loss(X, Y, ids, ids, scale=9.0, bias=-3.0)
    torch.testing.assert_close(rows.mean(), expected)
