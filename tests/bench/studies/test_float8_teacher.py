"""The study of float8 teachers: rounded as the package rounds, and as committed."""

import json
from pathlib import Path

import pytest
import torch

from bench.studies.float8_teacher import KINDS, NUMBERS, batch, errors, in_float8, page
from mxm_kernels.ops.float8 import float8_teacher, largest_of

RESULTS = Path(__file__).parents[3] / "bench" / "results"


@pytest.mark.parametrize("kind", KINDS)
def test_it_rounds_as_the_package_does(kind):
    _, (a, b) = batch(kind, 256)
    t = torch.tensor(2.0, dtype=torch.float64)
    (c, d), folded = float8_teacher((a, b), t, largest_of(a, b, torch.float64), "blocked")
    T = folded * c.double() @ d.double().T
    torch.testing.assert_close(T, 2 * in_float8(a) @ in_float8(b).T, rtol=1e-12, atol=0)


def test_the_committed_numbers_are_what_it_computes():
    committed = json.loads((RESULTS / "float8_teacher.json").read_text())
    assert page(committed) == (RESULTS / "float8_teacher.md").read_text()
    first = [r for r in committed if (r["features"], r["D"], r["t"]) == ("converged", 256, 33.0)]
    for found, expected in zip(errors("converged", 256, 33.0), first, strict=True):
        for name in NUMBERS:
            assert found[name] == pytest.approx(expected[name], rel=1e-3), name
