import pytest
import torch

from examples.data.instances import Instance
from examples.encoders.open_clip import OpenClipEncoder
from examples.studies.cma_clip import experiment as module
from examples.studies.cma_clip.config import Config
from examples.studies.cma_clip.data import Pairs
from examples.studies.cma_clip.evaluate import Evaluation
from examples.studies.cma_clip.experiment import Experiment, summarise
from examples.studies.cma_clip.prepare import DataSet

from .tiny import make_clip, make_labels, observations

COUNT = 40


@pytest.fixture
def experiment(tmp_path):
    instances = [Instance(f"instance {i}", (), ()) for i in range(COUNT)]
    data = DataSet(instances, observations(COUNT), make_labels(COUNT))
    config = Config(
        layers=1, width=16, heads=2, noise="text", seed=9, output_dir=str(tmp_path), cpu=True
    )
    return Experiment(config, data, OpenClipEncoder(make_clip(tmp_path), 0.07))


def test_training_sees_the_training_and_the_validation_split(experiment, monkeypatch):
    seen = []

    def train(model, stages, training, cache):
        seen.append(training)
        return [], None

    monkeypatch.setattr(module, "train", train)
    experiment.train(experiment.stages())
    (training,) = seen
    data, config = experiment.data, experiment.config
    assert training.train.members == data.members("train", 9)
    assert training.validation.members == data.members("val", 9)
    assert training.train.replaced["text"] and training.validation.replaced["text"]
    assert (training.instances_per_batch, training.pairs_per_instance) == (512, 2)
    assert (training.weight_decay, training.contrastive_weight) == (1e-4, 0.5)
    assert (training.seed, training.folder) == (9, config.output_path / "checkpoints")


def test_the_test_is_of_the_test_split(experiment):
    for noisy in (False, True):
        pairs = experiment.test(noisy).pairs
        assert set(pairs.instances.tolist()) == set(experiment.data.members("test", 9))
        assert bool(pairs.noisy_text.any()) is noisy


@pytest.fixture
def evaluation():
    """Six pairs, the last three with noise: right 2 of 3 without it and 1 of 3 with it."""
    rows, noisy = torch.arange(6), torch.arange(6) >= 3
    truth, predicted = torch.tensor([0, 1, 0, 1, 0, 1]), torch.tensor([0, 1, 1, 1, 1, 0])
    logits = torch.nn.functional.one_hot(predicted, 2).float()
    pairs = Pairs(rows, rows, rows, {"shape": truth}, torch.zeros(6, dtype=torch.bool), noisy)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    return Evaluation(pairs, {"shape": logits}, {"shape": weights})


def test_the_summary_tells_right_pairs_from_noise(evaluation):
    summary = summarise(evaluation, 0.9)
    assert (summary["pairs"], summary["noisy_pairs"]) == (6, 3)
    assert summary["accuracy"]["shape"] == pytest.approx(50.0)
    assert summary["accuracy_right"]["shape"] == pytest.approx(200 / 3)
    assert summary["accuracy_noise"]["shape"] == pytest.approx(100 / 3)
    weight = summary["text_weight"]["shape"]
    assert weight["right"]["mean"] == pytest.approx(0.8)
    assert weight["noise"]["mean"] == pytest.approx(0.2)
    for kind, low, high in (("right", 14, 18), ("noise", 2, 6)):
        histogram = weight[kind]["histogram"]
        assert len(histogram) == 20
        assert sum(histogram) == sum(histogram[low - 1 : high + 1]) == 3


def test_without_noise_there_is_no_second_accuracy(evaluation):
    evaluation.pairs.noisy_text[:] = False
    summary = summarise(evaluation, 0.9)
    assert "accuracy_right" not in summary
    assert summary["text_weight"]["shape"]["noise"] is None
