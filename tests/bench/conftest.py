"""One thread: batches this small only wait for a second one."""

import pytest
import torch

from bench import timing


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(timing, "DEFAULT_THREADS", 1)
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)
