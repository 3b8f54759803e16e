"""The rules of pairs, worked by hand."""

import torch

from reference import rules


def test_offsets_are_added_to_rows_and_columns():
    made = rules.with_offsets(torch.zeros(2, 3), torch.tensor([1.0, 2.0]), torch.arange(3) * 10.0)
    assert made.tolist() == [[1, 11, 21], [2, 12, 22]]


def test_the_same_id_is_no_negative_and_a_negative_id_says_nothing():
    made = rules.excluded(torch.tensor([5, -1]), torch.tensor([5, -1, 4]))
    assert made.tolist() == [[True, False, False], [False, False, False]]


def test_other_ids_are_no_negatives_and_a_negative_id_is_for_all():
    made = rules.outside(torch.tensor([5, -1]), torch.tensor([5, -1, 4]))
    assert made.tolist() == [[False, False, True], [False, False, False]]


def test_the_threshold_is_the_mean_of_the_positives():
    similarities = torch.tensor([[0.5, -0.1, 0.3], [-0.4, 0.0, 0.0], [0.1, 0.2, 0.3]])
    positives = torch.tensor([[True, True, False], [True, False, False], [False] * 3])
    absolute = rules.thresholds(similarities, positives, 0.1, "absolute")
    torch.testing.assert_close(absolute, torch.tensor([0.1, -0.5, torch.inf]))
    relative = rules.thresholds(similarities, positives, 0.5, "relative")
    torch.testing.assert_close(relative, torch.tensor([0.1, -0.6, torch.inf]))
    assert rules.above(similarities, absolute).tolist() == [
        [True, False, True],
        [True, True, True],
        [False, False, False],
    ]


def test_a_duplicate_of_the_positive_is_not_above_its_threshold():
    similarities = torch.tensor([[0.5, 0.5 + 1e-5, 0.5 + 2e-4]], dtype=torch.float64)
    positives = torch.tensor([[True, False, False]])
    limit = rules.thresholds(similarities, positives, 0.0, "absolute")
    assert rules.above(similarities, limit).tolist() == [[False, False, True]]
