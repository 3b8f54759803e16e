"""The reference itself, against definitions even closer to the paper's words."""

import itertools

import torch
from torch.nn.functional import cross_entropy, normalize

from reference import mfh

X, Y = (normalize(torch.randn(n, 5, dtype=torch.float64), dim=1) for n in (4, 6))
IMAGE_IDS, TEXT_IDS = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1, 1, 0])


def test_one_pair_each_is_cross_entropy():
    S, ids = 9.0 * X @ Y[:4].T, torch.arange(4)
    expected = (cross_entropy(S, ids) + cross_entropy(S.T, ids)) / 2
    drawn = ids[None], ids[None]
    loss = mfh.mfh_loss(X, Y[:4], ids, ids, scale=9.0, selection=drawn)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(mfh.mfh_loss(X, Y[:4], ids, ids, scale=9.0), expected)


def test_the_expectation_is_the_mean_over_every_selection():
    S, positives = 9.0 * X @ Y.T, mfh.group_matrix(IMAGE_IDS, TEXT_IDS)
    choices = [torch.nonzero(row).flatten().tolist() for row in positives]
    every = torch.tensor(list(itertools.product(*choices)))
    torch.testing.assert_close(
        mfh.hard_rows(S, positives, every), mfh.hard_rows_expected(S, positives)
    )


def test_masked_info_nce_by_hand():
    S = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    positives = torch.tensor([[True, True, False]])
    loss = mfh.masked_info_nce(S, positives, torch.tensor([0]))
    torch.testing.assert_close(loss, torch.log1p(torch.tensor([2.0], dtype=torch.float64).exp()))


def test_soft_loss_is_least_for_the_teacher_itself():
    S = 9.0 * X @ Y.T
    T = 9.0 * Y[:4] @ X.T @ X @ Y.T
    assert mfh.soft_rows(T, T).sum() < mfh.soft_rows(S, T).sum()
    torch.testing.assert_close(
        mfh.soft_rows(S, T), cross_entropy(S, T.softmax(1), reduction="none")
    )


def test_the_teacher_is_detached():
    teacher = X.clone().requires_grad_()
    student = X.clone().requires_grad_()
    mfh.mfh_loss(
        student, Y, IMAGE_IDS, TEXT_IDS, scale=9.0, teacher_x=teacher, teacher_y=Y
    ).backward()
    assert teacher.grad is None
    assert student.grad is not None
