"""The example of the count of bytes runs; tests/distributed holds the count to what is sent."""

import doctest

from bench.models import traffic


def test_the_example():
    failed, attempted = doctest.testmod(traffic)
    assert attempted and not failed
