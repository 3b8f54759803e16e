"""The examples in the docstrings run, and everything public has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import mxm_kernels

MODULES = [
    module.name
    for module in pkgutil.walk_packages(mxm_kernels.__path__, "mxm_kernels.")
    if "triton" not in module.name and not module.name.endswith(("_native", "__main__"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize(
    "name", [n for n in mxm_kernels.__all__ if n.startswith("fused_") or n.endswith("Loss")]
)
def test_every_loss_has_an_example(name):
    documented = getattr(mxm_kernels, name)
    text = inspect.getdoc(documented)
    assert ">>>" in text
    assert "Args:" in text
    if name.startswith("fused_"):
        assert "Returns:" in text
        assert "Raises:" in text
