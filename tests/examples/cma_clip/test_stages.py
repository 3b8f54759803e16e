import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, softplus

from examples.errors import CheckpointError
from examples.studies.cma_clip import stages
from examples.studies.cma_clip.model import PARTS
from examples.studies.cma_clip.sources import LiveTokens
from examples.studies.cma_clip.stages import Checkpoint, Stage, Training, three_stages, train
from tests.support.damage import flip


@pytest.fixture
def training(model, data, splits, tmp_path):
    return Training(
        splits["train"],
        splits["val"],
        LiveTokens(model.encoders, data),
        4,
        2,
        1e-4,
        0.5,
        0,
        tmp_path,
    )


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def moved(before, model):
    after = model.state_dict()
    return {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}


def test_the_defaults_are_algorithm_1():
    warm_up, end_to_end, tuning = three_stages()
    new = {"sequence": 1e-5, "modality": 1e-5, "heads": 1e-5}
    assert warm_up == Stage("warm_up", 20, {"encoders": 0, **new})
    assert end_to_end == Stage("end_to_end", 20, {"encoders": 1e-5, **new})
    assert tuning == Stage(
        "tuning", 20, {"encoders": 0, "sequence": 0, "modality": 1e-5, "heads": 1e-5}
    )
    assert three_stages(lr=1e-3, encoder_lr=1e-4)[1].lr["encoders"] == 1e-4


def test_a_stage_moves_what_it_trains_and_nothing_else(model, training, monkeypatch):
    scores = iter(range(100))
    monkeypatch.setattr(stages, "score", lambda *_: next(scores))  # the last epoch is the best
    for stage in three_stages((1, 1, 1), lr=1e-2):
        before = state(model)
        train(model, [stage], training)
        assert moved(before, model) == set(stage.trained)


def test_the_best_epoch_is_handed_over(model, training, monkeypatch):
    scores, seen = iter([10.0, 30.0, 50.0, 40.0, 50.0]), []

    def score(*_):
        seen.append(state(model))
        return next(scores)

    monkeypatch.setattr(stages, "score", score)
    (result,), _ = train(model, three_stages((4, 0, 0), lr=1e-2)[:1], training)
    assert result.best_epoch == 2  # the first of equals
    assert moved(seen[2], model) == set()
    assert moved(seen[4], model) == {"sequence", "modality", "heads"}
    # The next stage starts from it.
    starts = []
    monkeypatch.setattr(stages, "score", lambda *_: starts.append(state(model)) or 0.0)
    (result,), _ = train(model, three_stages((0, 1, 0), lr=1e-2)[1:2], training)
    assert all(torch.equal(starts[0][k], v) for k, v in seen[2].items())
    assert result.best_epoch == 0
    assert moved(seen[2], model) == set()


def test_the_optimiser_has_the_stages_rates_and_the_weight_decay(model, training, monkeypatch):
    made, optimiser = [], torch.optim.Adam

    def adam(groups, **options):
        made.append(optimiser(groups, **options))
        return made[-1]

    monkeypatch.setattr(torch.optim, "Adam", adam)
    training.weight_decay = 0.03
    for stage in three_stages((1, 1, 1), lr=1e-2, encoder_lr=1e-3):
        train(model, [stage], training)
        parts = list(stage.trained)
        groups = made[-1].param_groups
        assert [group["lr"] for group in groups] == [stage.lr[part] for part in parts]
        assert [group["weight_decay"] for group in groups] == [0.03] * len(parts)
        for group, part in zip(groups, parts, strict=True):
            want = [p for p in getattr(model, part).parameters() if p.requires_grad]
            assert {id(p) for p in group["params"]} == {id(p) for p in want}


def test_a_checkpoint_holds_the_trained_parts(model, training):
    train(model, three_stages((1, 1, 1), lr=1e-3), training)
    for stage in three_stages():
        stored = load_file(training.folder / f"{stage.name}.safetensors")
        assert {k.split(".")[0] for k in stored} == set(stage.trained)


def test_a_checkpoint_of_another_model_is_refused(model, tmp_path):
    warm_up, _, tuning = three_stages()
    Checkpoint(model, tuning, tmp_path).save()
    (tmp_path / "tuning.safetensors").rename(tmp_path / "warm_up.safetensors")
    with pytest.raises(ValueError, match="is not of this model"):
        Checkpoint(model, warm_up, tmp_path).load()


def test_a_damaged_checkpoint_is_refused(model, tmp_path):
    warm_up, *_ = three_stages()
    checkpoint = Checkpoint(model, warm_up, tmp_path)
    checkpoint.save()
    checkpoint.load()
    flip(checkpoint.path, 0.9)
    with pytest.raises(CheckpointError, match=r"warm_up.safetensors is not what was written"):
        checkpoint.load()


def test_encoders_that_learn_are_not_cached(model, training, monkeypatch):
    scores = iter(range(100))
    monkeypatch.setattr(stages, "score", lambda *_: next(scores))  # the last epoch is the best
    warm_up, end_to_end, tuning = three_stages((1, 1, 1), lr=1e-2)
    _, cache = train(model, [warm_up], training)
    before = cache.images.class_token.clone()
    _, gone = train(model, [end_to_end], training, cache)
    assert gone is None
    _, new = train(model, [tuning], training)
    assert (new.images.class_token - before).abs().max() > 1e-4


def dense_contrastive(image, text, ids, scale):
    """The hard part of MFH with the exact expectation, densely."""

    def half(logits, positive):
        negatives = logits.masked_fill(positive, -torch.inf).logsumexp(1, keepdim=True)
        losses = softplus(negatives - logits)
        return ((losses * positive).sum(1) / positive.sum(1)).mean()

    logits, positive = scale * image @ text.T, ids[:, None] == ids
    return (half(logits, positive) + half(logits.T, positive.T)) / 2


def test_the_loss_is_the_tasks_and_the_contrastive_term(model, training):
    warm_up, end_to_end, _ = three_stages()
    pairs = next(training.train.batches(4, 2, 0, 0))
    image, text = training.source.tokens(pairs.images, pairs.texts)
    prediction = model(image, text)
    tasks = sum(cross_entropy(prediction.logits[t], pairs.labels[t]) for t in pairs.labels)
    contrastive = dense_contrastive(
        image.features, text.features, pairs.instances, model.encoders.logit_scale
    )

    def loss(stage):
        return stages.batch_loss(model, pairs, training.source, stage, training)

    torch.testing.assert_close(loss(warm_up), tasks)
    torch.testing.assert_close(loss(end_to_end), tasks + 0.5 * contrastive, rtol=1e-4, atol=1e-5)
    training.contrastive_weight = 0.0
    torch.testing.assert_close(loss(end_to_end), tasks)


def test_the_contrastive_term_reaches_encoders_and_temperature(model, training):
    _, end_to_end, _ = three_stages()
    stages.freeze(model, end_to_end)
    pairs = next(training.train.batches(4, 2, 0, 0))
    stages.batch_loss(model, pairs, training.source, end_to_end, training).backward()
    assert model.encoders.dual.log_scale.grad.abs() > 0
    assert model.encoders.clip.visual.conv1.weight.grad.abs().sum() > 0
    assert model.encoders.clip.token_embedding.weight.grad.abs().sum() > 0


def test_training_learns_separable_labels(model, training):
    labels = training.train.labels
    start = model.state_dict()["heads.shape.0.weight"].clone()
    results, _ = train(model, three_stages((15, 0, 0), lr=5e-3), training)
    assert results[0].name == "warm_up"
    assert sum(results[0].losses[-4:]) < 0.8 * sum(results[0].losses[:4])
    assert not torch.equal(model.state_dict()["heads.shape.0.weight"], start)
    assert labels.counts == {"shape": 2, "colour": 3}


def test_runs_repeat(model, training):
    start = state(model)
    first, _ = train(model, three_stages((1, 1, 1), lr=1e-3), training)
    model.load_state_dict(start)
    second, _ = train(model, three_stages((1, 1, 1), lr=1e-3), training)
    assert first == second


def test_wrong_stages_are_named():
    with pytest.raises(ValueError, match="lr must have a rate for each of"):
        Stage("warm_up", 1, {"heads": 1e-3})
    with pytest.raises(ValueError, match="lr must be 0 or more, and not all 0"):
        Stage("warm_up", 1, dict.fromkeys(PARTS, 0.0))
    with pytest.raises(ValueError, match="epochs must not be negative, got -1"):
        Stage("warm_up", -1, dict.fromkeys(PARTS, 1.0))
    with pytest.raises(ValueError, match="one number for each of the 3 stages"):
        three_stages((1, 2))
