"""What the operators' tests share: a compiler for those that compile."""

import pytest
import torch


@pytest.fixture
def compiler():
    """A compiler that has not met our functions: PyTorch gives up after 8 variants of one."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
