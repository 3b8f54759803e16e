import pytest
import torch

from examples.encoders.open_clip import OpenClipEncoder
from examples.studies.cma_clip.data import PairSplit
from examples.studies.cma_clip.encoders import OpenClipTokens
from examples.studies.cma_clip.model import CMAClip
from examples.studies.cma_clip.noise import Noise
from examples.studies.cma_clip.study import main

from .tiny import CLASSES, TINY, command, make_clip, make_labels, observations


@pytest.fixture
def encoders(tmp_path):
    return OpenClipTokens(OpenClipEncoder(make_clip(tmp_path), 0.07)).eval()


@pytest.fixture
def data():
    return observations(12)


@pytest.fixture
def splits(data):
    labels = make_labels(12)
    noise = Noise("text", 0.5, seed=1)
    return {
        "train": PairSplit(data, labels, range(8), "train", noise),
        "val": PairSplit(data, labels, range(8, 12), "val", noise),
    }


@pytest.fixture
def model(encoders):
    torch.manual_seed(1)
    return CMAClip(encoders, CLASSES, layers=2, width=16, heads=2)


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    options = {
        **TINY,
        "output_dir": folder / "run",
        "results_dir": folder / "results",
        "workers": 1,
    }
    arguments = command(options, "--seeds", "1", "2", "--stage_epochs", "1", "1", "1")
    assert main(arguments) == 0
    return folder, arguments
