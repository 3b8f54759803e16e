"""An empty folder of settings, where the interpreter is the GPU."""

import pytest


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Nothing measured before, and nothing kept after."""
    launch = pytest.importorskip("mxm_kernels.backends.triton.launch")
    from mxm_kernels.backends.triton import tuned

    if not launch.interpreted():
        pytest.skip("needs Triton's interpreter")
    monkeypatch.setenv(tuned.FOLDER, str(tmp_path))
    launch.in_force.cache_clear()
    yield tmp_path
    launch.in_force.cache_clear()
