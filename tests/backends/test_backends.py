"""The choice of a backend, and what importing the package loads."""

import subprocess
import sys

import pytest
import torch

from mxm_kernels import BackendUnavailableError, backends


def test_every_name_loads():
    for name in backends.REGISTRY:
        assert hasattr(backends.load(name), "forward")


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", torch.float64, "blocked"),
        ("cuda", torch.float64, "blocked"),
        ("cuda", torch.float32, "triton"),
        ("cuda", torch.bfloat16, "triton"),
        ("mps", torch.float32, "blocked"),
    ],
)
def test_choice_without_a_request(device, dtype, expected):
    assert backends.choose(None, torch.device(device), dtype) == expected


def test_triton_on_a_cpu_tensor_says_what_it_needs(monkeypatch):
    from mxm_kernels.backends.triton import launch

    monkeypatch.setattr(launch, "interpreted", lambda: False)
    with pytest.raises(
        BackendUnavailableError, match="CUDA or ROCm device, got cpu.*TRITON_INTERPRET"
    ):
        backends.choose("triton", torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "blocked"), ((8, 0), "triton")])
def test_a_gpu_that_is_too_old_gets_blocked(monkeypatch, capability, expected):
    from mxm_kernels.backends import triton

    monkeypatch.setattr(triton, "_capability", lambda device: capability)
    assert backends.choose(None, torch.device("cuda"), torch.float32) == expected
    if expected == "blocked":
        with pytest.raises(BackendUnavailableError, match=r"\(8, 0\) or newer, got \(7, 5\)"):
            backends.choose("triton", torch.device("cuda"), torch.float32)


def test_triton_that_is_not_installed(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert backends.choose(None, torch.device("cuda"), torch.float32) == "blocked"
    with pytest.raises(BackendUnavailableError, match="package triton is not installed"):
        backends.choose("triton", torch.device("cuda"), torch.float32)


def test_importing_the_package_loads_no_kernel():
    program = (
        "import sys, torch, mxm_kernels as m\n"
        "x = torch.nn.functional.normalize(torch.randn(4, 3))\n"
        "m.fused_mfh_loss(x, x, (2, 2), logit_scale=10.0)\n"
        "assert not [n for n in sys.modules if n.startswith('mxm_kernels.backends.triton')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
