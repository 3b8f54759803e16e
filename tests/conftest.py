"""Fixtures shared by all tests: one feeds every backend to every test that asks for it."""

from __future__ import annotations

import os
import tempfile

import torch

if not torch.cuda.is_available():
    # Before any kernel is imported: without a GPU Triton interprets the kernels on the CPU.
    os.environ["TRITON_INTERPRET"] = "1"

# No test runs with launch settings that its user once measured: this folder is not there.
os.environ["MXM_KERNELS_TUNED"] = f"{tempfile.gettempdir()}/mxm-kernels-tests-{os.getpid()}"

import pytest
from hypothesis import HealthCheck, settings

from mxm_kernels import backends
from tests.support.backend import BackendUnderTest
from tests.support.messages import PACKAGE

# A warning of the package is an error in the processes that tests start, as pyproject.toml makes it
# one in this process. The variable takes whole names of modules.
_FILES = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py")]
_MODULES = [".".join(file.parts).removesuffix(".__init__") for file in _FILES]
os.environ["PYTHONWARNINGS"] = ",".join(f"error:::{module}" for module in _MODULES)

settings.register_profile(
    "mxm",
    deadline=None,  # the interpreter is slow, and so is a shared machine
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("mxm")

_GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = [
    BackendUnderTest("blocked", torch.device("cpu")),
    BackendUnderTest("blocked", torch.device("cuda")),
    BackendUnderTest("native", torch.device("cpu")),
    BackendUnderTest("triton", _GPU),
]


@pytest.fixture(params=BACKENDS, ids=str)
def backend(request: pytest.FixtureRequest) -> BackendUnderTest:
    """Every backend in turn; one that cannot run here is skipped with its reason."""
    candidate: BackendUnderTest = request.param
    if candidate.device.type == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"{candidate}: no CUDA device")
    reason = backends.load(candidate.name).unavailable(candidate.device, torch.float32)
    if reason is not None:
        pytest.skip(f"{candidate}: {reason}")
    return candidate


@pytest.fixture
def fusing(backend: BackendUnderTest) -> BackendUnderTest:
    """Every backend that has formulas in a kernel."""
    if not backends.load(backend.name).fused_formulas:
        pytest.skip(f"{backend}: it has no formula in a kernel")
    return backend


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill every empty allocation with NaN, so that an unwritten output cannot pass."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seed():
    """Start every test from the same random state."""
    torch.manual_seed(0)
