"""The factor that dS carries, on the host: bounded, and taken out without leaving the dtype."""

import math

import pytest
import torch

from mxm_kernels.backends.units import largest_of, multiply, unit_of


@pytest.mark.parametrize("exponent", [-290, -250, -150, -101, -100, -1, 0, 1, 100, 101, 150, 250])
def test_a_product_that_the_dtype_holds_is_exact(exponent):
    """Though it may not hold the factor."""
    value = torch.tensor([1.5, -1.25]) * 2.0 ** max(-140, min(126, -exponent))
    expected = value.double() * 2.0**exponent
    assert bool((multiply(value.clone(), 2.0**exponent).double() == expected.float()).all())


@pytest.mark.parametrize("factor", [0.0, math.inf, -math.inf, math.nan])
def test_a_factor_without_an_exponent_ends(factor):
    torch.testing.assert_close(
        multiply(torch.ones(2), factor), torch.full((2,), factor), equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ordinary_upstream_gradients_carry_nothing(dtype):
    assert unit_of(1 / 65536, 100.0, dtype) == 1
    assert unit_of(32768.0, 33.0, dtype) == 1  # a loss scale of torch.amp


@pytest.mark.parametrize("scale", [1e-38, 1.0, 3e38])
@pytest.mark.parametrize("largest", [1e-45, 1e-30, 1e-20, 1.0, 1e20, 1e38])
def test_others_are_brought_to_an_ordinary_size(largest, scale):
    unit = unit_of(largest, scale, torch.float32)
    assert math.frexp(unit)[0] == 0.5  # a power of two
    size = math.log2(largest) + math.log2(unit)
    assert -42 <= size <= 62
    assert -90 <= size + math.log2(scale) <= 110  # dS times a logit


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_what_has_no_size_carries_nothing(value):
    assert unit_of(value, 1e38, torch.float32) == 1
    assert unit_of(1e38, value, torch.float32) == 1


def test_the_largest_of_some_vectors():
    assert largest_of([torch.tensor([1.0, -3.0]), torch.empty(0), torch.ones(2, 2)]) == 3
    assert largest_of([torch.empty(0)]) == 0
