"""The study of the memory budget: each row is of its budget, and the page has them all."""

import pytest
import torch

from bench.cases import Case
from bench.studies import budget
from mxm_kernels import get_memory_budget
from tests.support.watched import watch

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_row_is_measured_under_its_budget(dtype, monkeypatch):
    case = Case(24, 20, 16, dtype=dtype)
    name = budget.backends.choose(None, CPU, case.torch_dtype)
    watched = watch(name, monkeypatch)
    before, budgets = get_memory_budget("cpu"), [0, 32 << 20, 1 << 30]
    rows, products, refused = budget.measure(case, CPU, budgets, 0.1)
    assert not refused and get_memory_budget("cpu") == before
    assert [row.budget for row in rows] == budgets
    assert watched.budgets == set(budgets)
    assert all(row.times["both"] > 0 for row in rows) and products["both"] > 0
    assert rows[0].kept <= rows[-1].kept
    text = budget.page(case, rows, products, {"7 MiB": "too small"})
    assert case.name in text and "| 32 MiB | " in text and "beside its 6 products alone" in text
    assert "7 MiB: too small." in text


def test_the_batches_are_those_of_the_targets():
    assert [c.name for c in budget.cases(CPU)] == [
        f"4,920 x 4,100 x 512, R 10, teacher, {dtype}" for dtype in ("float32", "bfloat16")
    ]
    (first, _) = budget.cases(torch.device("cuda"))
    assert (first.M, first.N, first.D, first.teacher) == (32_768, 32_768, 768, True)


def test_another_devices_table_stays():
    text = budget.merged("", CPU, "first\n")
    assert budget.merged(text, CPU, "second\n") == "<!-- cpu -->\nsecond\n"
    both = budget.merged(text, torch.device("cuda"), "of a GPU\n")
    assert both == "<!-- cpu -->\nfirst\n\n<!-- cuda -->\nof a GPU\n"
    assert "first" not in budget.merged(both, CPU, "third\n")
    assert "of a GPU" in budget.merged(both, CPU, "third\n")
