from dataclasses import replace

import pytest
import torch

from examples.encoders.open_clip import OpenClipEncoder
from examples.studies.cma_clip.config import Config
from examples.studies.cma_clip.data import Pairs
from examples.studies.cma_clip.evaluate import Evaluation
from examples.studies.cma_clip.model import PARTS
from examples.studies.cma_clip.rows.measure import Thresholds, counts, text_weights
from examples.studies.cma_clip.rows.models import build, prompt_features
from examples.studies.cma_clip.rows.plan import CELLS, CONDITIONS, PRIMARY, ROWS
from examples.studies.cma_clip.sources import LiveTokens

from .tiny import CLASSES, make_clip, observations

CONFIG = replace(Config(), width=16, heads=2, layers=1)


@pytest.fixture
def dual(tmp_path):
    return OpenClipEncoder(make_clip(tmp_path), 0.07).eval()


def prompts():
    torch.manual_seed(3)
    return {
        task: torch.nn.functional.normalize(torch.randn(c, 16), dim=1)
        for task, c in CLASSES.items()
    }


def logits(model, images, texts):
    model.eval()
    source = LiveTokens(model.encoders, observations(4))
    with torch.no_grad():
        return model(*source.tokens(torch.tensor(images), torch.tensor(texts))).logits["colour"]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_looks_at_its_modalities_alone(row, dual):
    model = build(ROWS[row], CONFIG, dual, CLASSES, prompts())
    first = logits(model, [0, 0, 2], [0, 4, 0])
    sees_text = not torch.equal(first[0], first[1])
    sees_image = not torch.equal(first[0], first[2])
    assert sees_text == (ROWS[row].looks_at in ("both", "text"))
    assert sees_image == (ROWS[row].looks_at != "text")


def test_every_part_of_every_row_is_there_to_be_trained(dual):
    for row in ROWS.values():
        model = build(row, CONFIG, dual, CLASSES, prompts())
        assert all(isinstance(getattr(model, part), torch.nn.Module) for part in PARTS)
        assert any(p.requires_grad for p in model.heads.parameters())


def test_prompts_start_as_the_cosines_of_the_aligned_encoders(dual):
    model = build(ROWS["prompts"], CONFIG, dual, CLASSES, prompts())
    got = logits(model, [0, 2], [0, 0])
    source = LiveTokens(model.encoders, observations(4))
    features = source.images([0, 2]).features
    want = features @ prompts()["colour"].T / 0.07
    torch.testing.assert_close(got, want.detach(), rtol=1e-4, atol=1e-4)


def test_a_class_is_the_mean_of_its_prompts():
    features = torch.eye(3)
    got = prompt_features(features, {"task": [[0, 1], [2, 2]]})["task"]
    half = 0.5**0.5
    torch.testing.assert_close(got, torch.tensor([[half, half, 0], [0, 0, 1]]))


def evaluation(scores, labels, instances, weights=None):
    count = len(labels)
    zeros, off = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.bool)
    pairs = Pairs(zeros, zeros, torch.tensor(instances), {"t": torch.tensor(labels)}, off, off)
    probabilities = torch.tensor(scores, dtype=torch.float64)
    shares = torch.tensor(weights or [0.5] * count)
    return Evaluation(pairs, {"t": probabilities.log()}, {"t": shares})


def test_the_threshold_of_validation_is_applied_to_the_test_pairs():
    validation = evaluation([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], [0, 0, 1], [0, 1, 2])
    thresholds = Thresholds.choose(validation, 0.9)
    assert thresholds.of["t"] == pytest.approx(0.8)
    test = evaluation([[0.85, 0.15], [0.75, 0.25], [0.1, 0.9]], [1, 0, 1], [7, 5, 5])
    found = counts(test, thresholds)
    assert found["instances"] == [5, 7]
    assert found["pairs"] == [2, 1]
    # Of instance 5 both pairs are right and one is accepted; of 7 the accepted class is wrong.
    assert found["tasks"]["t"] == {"correct": [2, 0], "accepted": [1, 1], "hits": [1, 0]}


def test_without_a_threshold_nothing_is_accepted():
    validation = evaluation([[0.9, 0.1], [0.8, 0.2]], [1, 1], [0, 1])
    thresholds = Thresholds.choose(validation, 0.9)
    found = counts(evaluation([[1.0, 0.0]], [0], [3]), thresholds)
    assert found["tasks"]["t"] == {"correct": [1], "accepted": [0], "hits": [0]}


def test_counts_and_weights_are_of_the_chosen_pairs():
    scores, weights = [[0.9, 0.1], [0.2, 0.8]], [0.25, 0.75]
    found = evaluation(scores, [0, 0], [3, 3], weights)
    chosen = torch.tensor([False, True])
    assert counts(found, Thresholds({"t": 0.5}), chosen)["tasks"]["t"]["correct"] == [0]
    assert text_weights(found, chosen) == {"t": 0.25}


def test_the_plan_trains_what_its_differences_need():
    assert set(dict.fromkeys(c for c, _ in CELLS)) == set(CONDITIONS)
    for difference in PRIMARY:
        for row in (difference.first, difference.second):
            assert (difference.condition, row) in CELLS
