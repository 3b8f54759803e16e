import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The runs are tiny, and their numbers must not depend on the number of cores."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny(tmp_path):
    """Options of a run of a few seconds."""
    return {
        "output_dir": str(tmp_path / "run"),
        "limit": 9,  # three steps an epoch: checkpoints fall in the middle of one
        "batch_size": 3,
        "image_size": 32,
        "max_steps": 5,
        "checkpoint_every": 2,
        "cpu": True,
    }
