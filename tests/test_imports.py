"""What importing the package costs: no module that ``import torch`` does not bring, but its own.

Every answer comes from a Python of its own, since this process has imported everything.
"""

import subprocess
import sys
from functools import cache

import pytest
import torch

from mxm_kernels.compiling import constant_when_compiled

MODULES = [
    "mxm_kernels",
    "mxm_kernels.data",
    "mxm_kernels.open_clip",
    "mxm_kernels.retrieval",
    "mxm_kernels.sentence_transformers",
]
STEP = """
import torch
from mxm_kernels import Folds, fused_mfh_loss, fused_siglip_loss
x, y = torch.randn(4, 8, requires_grad=True), torch.randn(6, 8)
fused_mfh_loss(x, y, Folds.uniform(2, 3), logit_scale=9.0, rounds=3).backward()
fused_siglip_loss(x, y, Folds.uniform(2, 3), logit_scale=9.0, logit_bias=-5.0).backward()
"""


@cache
def loaded(code: str) -> frozenset[str]:
    """The modules of a new process once it has run ``code``."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return frozenset(done.stdout.split())


def added(code: str) -> list[str]:
    """Modules that ``code`` loads and ``import torch`` does not; Python's and ours are free."""
    names = loaded(code) - loaded("import torch")
    free = {*sys.stdlib_module_names, "mxm_kernels"}
    return sorted(name for name in names if name.partition(".")[0] not in free)


def test_an_import_brings_nothing_that_torch_does_not():
    every = f"import {', '.join(MODULES)}"
    assert added(every) == []
    assert set(MODULES) <= loaded(every)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a step on a CPU")
def test_a_step_on_a_cpu_brings_nothing_that_torch_does_not():
    assert added(STEP) == []
    assert "mxm_kernels.ops.statistics" in loaded(STEP)


def test_what_an_import_brings_is_seen():
    """The test above would see torch._dynamo and Triton."""
    found = added("import mxm_kernels, torch._dynamo")
    assert "torch._dynamo" in found and "sympy" in found


def test_a_constant_of_torch_compile_is_marked_as_torch_marks_it():
    def ours():
        """A function."""

    def torchs():
        """Another."""

    torch.compiler.assume_constant_result(torchs)
    assert vars(constant_when_compiled(ours)) == vars(torchs) != {}
