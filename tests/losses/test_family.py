"""Every loss of the family against its dense form in float64, with any options together."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.agreement import check
from tests.support.cases import NAMED_CASES, Case, cases
from tests.support.family import LOSSES
from tests.support.options import Choice, choices

PLAIN = Choice()
NAMED = {
    "plain": PLAIN,
    "soft": replace(PLAIN, soft_weight="number"),
    "row weights": replace(PLAIN, image_weights=True, text_weights=True, soft_weight="number"),
    "row scales": replace(PLAIN, logit_scale="rows", soft_weight="number"),
    "queues with ids": replace(
        PLAIN, text_queue="folds", image_queue="folds", soft_weight="number", label_smoothing=0.1
    ),
    "everything": Choice(
        soft_weight="rows",
        teacher_logit_scale=True,
        label_smoothing=0.1,
        image_to_text_weight=0.25,
        image_weights=True,
        text_weights=True,
        pair_weights=True,
        text_queue="folds",
        image_queue="folds",
        reduction="none",
        logit_scale="rows",
    ),
    "filter alone": replace(PLAIN, filter_margin="relative"),
}
RULES = {
    "image_offsets": "both",
    "teacher_image_offsets": True,
    "exclude_ids": True,
    "within_ids": True,
    "filter_margin": "absolute",
}
NAMED["told"] = replace(NAMED["soft"], **RULES)
NAMED["everything, told"] = replace(NAMED["everything"], **RULES)

DEGENERATE = [
    "rows without positives",
    "a single instance",
    "one pair",
    "one image",
    "one text",
    "hot",
    "one dimension",
]


@pytest.mark.parametrize("choice", NAMED.values(), ids=NAMED.keys())
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_named_options(loss, choice, backend):
    case = NAMED_CASES["ragged and shuffled"]
    check(loss, case, choice, torch.float32, backend)
    if torch.float64 in backend.dtypes:
        check(loss, case, choice, torch.float64, backend)


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_degenerate_batches(loss, case, backend):
    case = NAMED_CASES[case]
    check(loss, case, replace(PLAIN, soft_weight="number"), torch.float32, backend)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_the_soft_loss_alone_where_no_modality_has_a_pair(loss, backend):
    choice = replace(PLAIN, soft_weight="one")
    check(loss, NAMED_CASES["pairs of CLIP"], choice, torch.float32, backend)


@pytest.mark.parametrize("s", [1e-20, 1e-30])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "debiased"])  # on its floor
def test_a_tiny_scale_has_its_gradient(name, s, backend):
    """The square of the scale is below float32's numbers."""
    case = replace(NAMED_CASES["ragged and shuffled"], temperature=1 / s)
    check(LOSSES[name], case, replace(PLAIN, soft_weight="number"), torch.float32, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_scales_of_rows_are_rounded_alike_wherever_they_are_read(loss, dtype, backend):
    """Of one column S itself cancels; with one rounded scale and one exact a rounding stays."""
    case = Case((1, 1), (1,), dimension=7, temperature=0.005)
    check(loss, case, replace(NAMED["everything"], soft_weight="none"), dtype, backend)
    choice = replace(PLAIN, logit_scale="rows", label_smoothing=0.1, reduction="none")
    check(loss, case, choice, dtype, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_gradients_that_cancel_in_one_dimension(loss, dtype, backend):
    case = Case((0, 0, 0, 2), (0, 1), dimension=1, temperature=0.005)
    check(loss, case, replace(PLAIN, reduction="none"), dtype, backend)


@settings(max_examples=60)
@given(data=st.data())
def test_drawn_cases_and_options(backend, data):
    name = data.draw(st.sampled_from(sorted(LOSSES)))
    loss, case = LOSSES[name], data.draw(cases(min(backend.most_rows, 24)))
    # In one dimension debiased's sum over the negatives can stand just on its floor, a kink, and
    # cwcl's weights of a row can all be 0, which its paper leaves undefined.
    assume(name not in ("debiased", "cwcl") or case.dimension > 1)
    choice, dtype = data.draw(choices()), data.draw(st.sampled_from(backend.dtypes))
    check(loss, case, choice, dtype, backend)
