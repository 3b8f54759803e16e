"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["data", "folds", "functional", "modules", "retrieval"])
def test_examples(name):
    module = importlib.import_module(f"mxm_kernels.{name}")
    failed, attempted = doctest.testmod(module)
    assert attempted > 0
    assert failed == 0
