"""The suites are what they say."""

import pytest
import torch

from bench.batch import Batch
from bench.cases import Case, cpu_suite, gpu_suite, pairs, smoke_suite

SUITES = {
    "cpu": cpu_suite(2, multiplies_bfloat16=True),
    "gpu": gpu_suite(),
    "smoke": smoke_suite(torch.device("cpu")),
}


@pytest.mark.parametrize("groups", SUITES.values(), ids=SUITES)
def test_names_identify_groups_and_cases(groups):
    assert len({g.name for g in groups}) == len(groups)
    for group in groups:
        assert len({case.name for case in group.cases}) == len(group.cases)


@pytest.mark.parametrize("multiplies", [True, False])
def test_dense_eager_in_bfloat16_only_where_the_cpu_has_instructions_for_it(multiplies):
    (group,) = (g for g in cpu_suite(2, multiplies) if g.name == "bfloat16")
    assert ("dense eager" in group.providers) == multiplies


def test_rows_that_are_no_instances_are_an_error():
    with pytest.raises(ValueError, match="11 x 10 rows are not instances of 6 x 5"):
        Case(11, 10, 8)


@pytest.mark.parametrize("wrong", [{"teacher": True}, {"views": 2, "captions": 2}])
def test_a_sigmoid_case_is_of_pairs_alone(wrong):
    with pytest.raises(ValueError, match="one pair in every row and no teacher"):
        Case(8, 8, 4, **{"views": 1, "captions": 1, "teacher": False} | wrong, sigmoid=True)


@pytest.mark.parametrize("case", [Case(12, 10, 4), Case(3, 15, 4, 1, 5), pairs(5, 4)])
def test_a_draw_is_of_positives(case):
    batch = Batch.make(case, torch.device("cpu"))
    to_text, to_image = batch.draw()
    rounds = (case.captions, case.views) if case.rounds is None else (case.rounds,) * 2
    assert to_text.shape == (rounds[0], case.M) and to_image.shape == (rounds[1], case.N)
    assert torch.equal(batch.text_ids[to_text], batch.image_ids.expand(to_text.shape))
    assert torch.equal(batch.image_ids[to_image], batch.text_ids.expand(to_image.shape))


def test_every_positive_is_each_once():
    batch = Batch.make(Case(12, 10, 4), torch.device("cpu"))
    to_text, _ = batch.every_positive()
    assert to_text[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert to_text[:, 11].tolist() == [5, 6, 7, 8, 9]
