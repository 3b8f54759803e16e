"""The draw: uniform, independent, reproducible, the same everywhere; and its checks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from mxm_kernels import Folds, draw_selection, fused_mfh_loss
from mxm_kernels.core.batch import make_batch
from mxm_kernels.core.pair_weights import (
    draw_rows,
    drawn_weights,
    expected_weights,
    given_pair_weights,
    paired_weights,
    selected_weights,
)

CPU = torch.device("cpu")
IDS = ([0, 1, 1, 2, 9], [1, 0, 1, 1, 2, 2, 8])


def features(rows):
    return torch.ones(rows, 2)


def draw(ids, rounds, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = features(len(ids[0])), features(len(ids[1]))
    return draw_selection(ids, x, y, rounds=rounds, generator=generator)


ids = st.lists(st.integers(0, 4), min_size=1, max_size=9)


@given(ids, ids, st.integers(0, 99))
def test_every_row_draws_one_of_its_positives(image_ids, text_ids, seed):
    text_ids = [*text_ids, image_ids[0]]
    to_text, to_image = draw((image_ids, text_ids), 5, seed)
    for drawn, rows, others in ((to_text, image_ids, text_ids), (to_image, text_ids, image_ids)):
        assert drawn.shape == (5, len(rows))
        for row, group in enumerate(rows):
            for choice in drawn[:, row].tolist():
                assert choice == -1 if group not in others else others[choice] == group


def _chi_square_tail(statistic: float, degrees: int) -> float:
    """Probability of a chi-square variable above ``statistic``."""
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


@pytest.mark.parametrize("side", [0, 1])
def test_uniform_by_chi_square(side):
    rounds, views, captions = 20_000, 4, 5
    drawn = draw(([0] * views, [0] * captions), rounds, seed=1)[side]
    choices = (captions, views)[side]
    counts = torch.stack([(drawn == k).sum(0) for k in range(choices)], 1).double()
    expected = rounds / choices
    statistics = ((counts - expected) ** 2 / expected).sum(1)
    # All rows together: the sum of independent chi-squares is a chi-square.
    degrees = (choices - 1) * len(statistics)
    assert 1e-4 < _chi_square_tail(float(statistics.sum()), degrees) < 1 - 1e-4


def test_the_chi_square_test_sees_a_biased_draw():
    counts = torch.tensor([4300.0, 3900, 3900, 3900, 4000])
    statistic = float(((counts - 4000) ** 2 / 4000).sum())
    assert _chi_square_tail(statistic, 4) < 1e-4


def test_rows_and_columns_are_independent():
    """The joint counts of image 0's and text 0's choices fit the product of uniforms."""
    rounds = 20_000
    to_text, to_image = draw(([0] * 3, [0] * 3), rounds, seed=2)
    joint = torch.zeros(9).index_add_(0, to_text[:, 0] * 3 + to_image[:, 0], torch.ones(rounds))
    statistic = float(((joint - rounds / 9) ** 2 / (rounds / 9)).sum())
    assert 1e-4 < _chi_square_tail(statistic, 8) < 1 - 1e-4


def test_a_generator_reproduces_the_draw():
    first, second, other = draw(IDS, 10, 7), draw(IDS, 10, 7), draw(IDS, 10, 8)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_the_default_generator_is_the_global_one():
    x, y = features(5), features(7)
    torch.manual_seed(3)
    first = draw_selection(IDS, x, y, rounds=6)
    torch.manual_seed(3)
    assert torch.equal(draw_selection(IDS, x, y, rounds=6)[1], first[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cpu_generator_draws_the_same_on_a_gpu():
    x, y = features(5), features(7)
    here = draw_selection(IDS, x, y, rounds=9, generator=torch.Generator().manual_seed(1))
    there = draw_selection(
        IDS, x.cuda(), y.cuda(), rounds=9, generator=torch.Generator().manual_seed(1)
    )
    assert torch.equal(here[0], there[0].cpu())
    assert torch.equal(here[1], there[1].cpu())


def batch_of(ids, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = features(len(ids[0])), features(len(ids[1]))
    return make_batch(x, y, ids, 1.0, {"backend": "blocked"}, generator=generator)


def test_weights_count_the_rounds():
    batch = batch_of(IDS, 5)
    tables = batch.tables
    weights = drawn_weights(batch, tables.segments, 2 * tables.pairs, 8)
    rows, cols = weights.split(tables.pairs)
    to_text, to_image = draw(IDS, 8, 5)
    for slot, (i, j) in enumerate(zip(tables.pair_images, tables.pair_texts, strict=True)):
        assert rows[slot] == (to_text[:, i] == j).sum() / 8
        assert cols[tables.slot_places[slot]] == (to_image[:, j] == i).sum() / 8
    assert torch.equal(weights, selected_weights(tables, (to_text, to_image), torch.float32))


def test_the_expectation_weighs_positives_alike():
    tables = Folds.from_ids(*IDS).tables(5, 7, CPU)
    rows, cols = expected_weights(tables, torch.float32).split(tables.pairs)
    counts = torch.bincount(tables.pair_images)
    torch.testing.assert_close(rows, 1 / counts[tables.pair_images].float())
    counts = torch.bincount(tables.pair_texts)[tables.pair_texts]
    torch.testing.assert_close(cols[tables.slot_places], 1 / counts.float())


def test_given_weights_come_in_slot_order():
    tables = Folds.from_ids(*IDS).tables(5, 7, CPU)
    given_ = tuple(torch.rand(tables.pairs).requires_grad_() for _ in range(2))
    rows, cols = given_pair_weights(tables, given_, torch.float32).split(tables.pairs)
    assert torch.equal(rows, given_[0])
    assert torch.equal(cols[tables.slot_places], given_[1])
    upstream = torch.rand(tables.pairs)
    cols.backward(upstream)
    assert torch.equal(given_[1].grad, upstream[tables.slot_places])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_a_share_of_the_rows_of_either_side_is_drawn(share):
    batch = batch_of(IDS, 7)
    chosen = draw_rows(batch, share)
    assert set(chosen.tolist()) <= {0, 1}
    images, texts = chosen.split([5, 7])
    assert (images.sum(), texts.sum()) == (round(5 * share), round(7 * share))


def test_every_row_is_drawn_as_often_as_another():
    """2 of 5 and 3 of 7 rows, 4000 times: the counts are within 5 standard deviations."""
    batch = batch_of(IDS, 1)
    counts = sum(draw_rows(batch, 0.4) for _ in range(4000)) / 4000
    shares = torch.tensor([2 / 5] * 5 + [3 / 7] * 7)
    assert bool(((counts - shares).abs() < 5 * (shares * (1 - shares) / 4000).sqrt()).all())


def _spoil(side, row, value, ids=IDS):
    selection = [s.clone() for s in draw(ids, 2, 0)]
    selection[side][1, row] = value
    return tuple(selection)


@pytest.mark.parametrize(
    ("selection", "error", "message"),
    [
        (
            _spoil(0, 0, 0),
            ValueError,
            r"selection\[0\]: expected a positive.* round 1, row 0, got 0",
        ),
        (_spoil(0, 0, 7), ValueError, r"selection\[0\]: expected a positive.* got 7"),
        (_spoil(0, 0, -1), ValueError, r"selection\[0\]: expected a positive.* got -1"),
        (_spoil(0, 0, -3), ValueError, r"selection\[0\]: expected a positive.* got -3"),
        (_spoil(0, 4, 2), ValueError, r"selection\[0\]: expected -1 in round 1, row 4, got 2"),
        (_spoil(1, 0, 0), ValueError, r"selection\[1\]: expected a positive.* row 0, got 0"),
        (_spoil(1, 6, 4), ValueError, r"selection\[1\]: expected -1.* row 6, got 4"),
        ((torch.zeros(2, 4).long(), torch.zeros(2, 7).long()), ValueError, r"shape \(rounds, 5\)"),
        (
            (torch.zeros(5).long(), torch.zeros(2, 7).long()),
            ValueError,
            r"\(rounds, 5\), got \(5,\)",
        ),
        ((torch.zeros(2, 5), torch.zeros(2, 7).long()), TypeError, "int64 or int32, got.*float32"),
        (([[0]], torch.zeros(2, 7).long()), TypeError, r"selection\[0\] must be a tensor.*list"),
        (torch.zeros(2, 5).long(), TypeError, "selection must be a pair"),
        (
            (draw(IDS, 2, 0)[0], draw(IDS, 3, 0)[1]),
            ValueError,
            "same number of rounds for both modalities, got 2 and 3",
        ),
        (
            (draw(IDS, 2, 0)[0].to("meta"), draw(IDS, 2, 0)[1]),
            ValueError,
            "on the device of the features, cpu, got meta",
        ),
    ],
)
def test_a_selection_outside_the_groups_is_an_error(selection, error, message):
    x, y = torch.nn.functional.normalize(torch.randn(12, 4)).split([5, 7])
    with pytest.raises(error, match=message):
        fused_mfh_loss(x, y, IDS, logit_scale=10.0, selection=selection)


@pytest.mark.parametrize("weights", [paired_weights, expected_weights])
def test_weights_are_kept_with_the_tables_of_uniform_folds_and_only_with_them(weights):
    with torch.inference_mode():
        first = weights(Folds.uniform(2, 3).tables(4, 6, CPU), torch.float32)
    again = weights(Folds.uniform(2, 3).tables(4, 6, CPU), torch.float32)
    assert first is again and not first.is_inference()
    assert weights(Folds.uniform(2, 3).tables(4, 6, CPU), torch.float64).dtype == torch.float64
    uniform = Folds.uniform(2, 3).tables(4, 6, CPU)
    with FakeTensorMode(allow_non_fake_inputs=True):  # traced ones would be those of a graph
        assert weights(uniform, torch.float32) is not first
    ids = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    tables = Folds.from_ids(*ids).tables(4, 6, CPU)
    given = weights(tables, torch.float32)
    assert torch.equal(first, given)
    assert weights(tables, torch.float32) is not given
