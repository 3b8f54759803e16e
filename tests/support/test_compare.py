"""The checkers can fail."""

import pytest
import torch

from tests.support.compare import allowed, assert_as_good, error

EXPECTED = torch.linspace(1, 2, 64, dtype=torch.float64)


def test_equal_is_zero():
    assert error(EXPECTED.clone(), EXPECTED) == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_value_that_is_not_finite_is_infinitely_wrong(value):
    actual = EXPECTED.clone()
    actual[3] = value
    assert error(actual, EXPECTED) == float("inf")


def test_another_shape_is_infinitely_wrong():
    assert error(EXPECTED[:1], EXPECTED) == float("inf")


def test_something_where_nothing_is_expected_fails():
    zero = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(AssertionError, match="value: error"):
        assert_as_good("value", torch.full((4,), 1e-12), zero, naive=zero, dtype=torch.float32)


@pytest.mark.parametrize(
    ("dtype", "wrong"), [(torch.float64, 1e-9), (torch.float32, 3e-5), (torch.bfloat16, 1e-2)]
)
def test_an_error_over_the_bound_fails(dtype, wrong):
    actual = EXPECTED * (1 + wrong)
    with pytest.raises(AssertionError, match="value: error"):
        assert_as_good("value", actual, EXPECTED, EXPECTED, dtype, magnitude=float(EXPECTED.norm()))


def test_one_wrong_sign_fails():
    actual = EXPECTED.clone()
    actual[0] *= -1
    with pytest.raises(AssertionError, match="value: error"):
        assert_as_good("value", actual, EXPECTED, naive=EXPECTED, dtype=torch.bfloat16)


def test_the_allowance_is_the_largest_of_its_reasons():
    assert allowed(torch.float32, 2.0, 0.0) == 2e-5
    assert allowed(torch.bfloat16, 1.0, 0.02) == 0.04
    assert (
        allowed(torch.float32, 0.0, 0.0, magnitude=1.0, rounding=4)
        == 4 * torch.finfo(torch.float32).eps
    )
    assert allowed(torch.float64, 1.0, naive_error=1.0) == 1e-10
    assert allowed(torch.float32, 0.0, 0.0, largest=10.0) == 1e-13
