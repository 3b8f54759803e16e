"""Every loss of the family against its dense form in float64, with any options together."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.cases import NAMED_CASES, Case, cases
from tests.support.compare import assert_as_good
from tests.support.family import LOSSES, Choice, Given, call, choices, dense

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PLAIN = Choice()
NAMED = {
    "plain": PLAIN,
    "rows": replace(PLAIN, reduction="none"),
    "soft": replace(PLAIN, soft="number"),
    "soft rows": replace(PLAIN, soft="rows"),
    "smoothed": replace(PLAIN, smoothing=0.2),
    "image to text": replace(PLAIN, share=1.0),
    "ConVIRT": replace(PLAIN, share=0.75),
    "row weights": replace(PLAIN, row_weights=True, soft="number"),
    "pair weights": replace(PLAIN, pair_weights=True),
    "row scales": replace(PLAIN, row_scales=True, soft="number"),
    "teacher scale": replace(PLAIN, soft="number", teacher_scale=True),
    "queues": replace(PLAIN, text_queue="negatives", image_queue="negatives"),
    "queues with ids": replace(
        PLAIN, text_queue="folds", image_queue="folds", soft="number", smoothing=0.1
    ),
    "everything": Choice("rows", 0.1, 0.25, True, True, "folds", "folds", True, True, "none"),
}

DEGENERATE = [
    "rows without positives",
    "a single instance",
    "one pair",
    "one image",
    "one text",
    "hot",
    "one dimension",
]


def _gradients(result):
    value, leaves = result
    value = torch.cat(value) if isinstance(value, tuple) else value
    generator = torch.Generator().manual_seed(3)
    upstream = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
    assert all(leaf.is_leaf for leaf in leaves)
    value.backward(upstream)
    zeros = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    return value.detach(), zeros, float(upstream.norm())


def check(loss, case: Case, choice: Choice, dtype, backend) -> None:
    given_ = Given(case, choice, dtype)
    expected, wanted, size = _gradients(dense(loss, given_, torch.float64))
    naive, naive_grads, _ = _gradients(dense(loss, given_, dtype))
    actual, got, _ = _gradients(call(loss, given_, dtype, backend.device, backend.name))
    s = 1 / case.temperature
    # Terms of a loss: similarities, at most 2 s each. Terms of a gradient: probabilities of a
    # row, which sum to at most 2, times s; each as far off as exp makes of S's rounding.
    assert_as_good("loss", actual, expected, naive, dtype, magnitude=4 * s * size)
    rounding = 4 + s
    # Gradients that were rounded to 16 bits before they are summed: those of the two ways that
    # features go, to S and beside it, which may cancel; and with a scale for each row that of the
    # features times it, of which the scale's is a sum. In one dimension the texts of a row are
    # alike but for the sign, and its whole dS may cancel. One rounding of the largest they can be.
    queued = loss.queues and (choice.text_queue != "none" or choice.image_queue != "none")
    two_ways = loss.two_ways or queued or (loss.pairs and choice.smoothing > 0)
    early = dtype.itemsize == 2 and (two_ways or choice.row_scales or case.dimension == 1)
    ratio = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    own = ratio / rounding if early else 0.0
    for name, a, e, n in zip(
        ["image", "text", "scale", "text scale"][: len(got)],
        got,
        wanted,
        naive_grads,
        strict=True,
    ):
        largest = 4 * size * (s if name in ("image", "text") else 1)
        assert_as_good(
            name,
            a,
            e,
            n,
            dtype,
            magnitude=(1 + own) * largest,
            rounding=rounding,
            largest=largest,
        )


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
    check(loss, case, replace(PLAIN, soft="number"), torch.float32, backend)


@pytest.mark.parametrize("s", [1e-20, 1e-30])
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "debiased"])  # on its floor
def test_a_tiny_scale_has_its_gradient(name, s, backend):
    """The square of the scale is below float32's numbers."""
    case = replace(NAMED_CASES["ragged and shuffled"], temperature=1 / s)
    check(LOSSES[name], case, replace(PLAIN, soft="number"), torch.float32, backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_scales_of_rows_are_rounded_alike_wherever_they_are_read(loss, dtype, backend):
    """Of one column S itself cancels; with one rounded scale and one exact a rounding stays."""
    case = Case((1, 1), (1,), dimension=7, temperature=0.005)
    check(loss, case, replace(NAMED["everything"], soft="none"), dtype, backend)
    choice = replace(PLAIN, row_scales=True, smoothing=0.1, reduction="none")
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
