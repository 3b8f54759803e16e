"""The check of sums in place: it runs without a GPU, sees what is wrong, and passes on a GPU."""

import pytest
import torch

from bench.gpu import accumulation
from bench.gpu.accumulation import accumulation_probe, add_temporary, product_report

CPU = torch.device("cpu")
SHAPE = (64, 128, 48)
BOTH = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def test_a_cpu_says_that_it_cannot():
    expected = {"accumulates": False, "products": []}
    assert accumulation_probe(CPU) == {"bfloat16": expected, "float16": expected}


@BOTH
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_what_is_right_is_reported_as_right(dtype, transposed, beta):
    report = product_report(CPU, dtype, SHAPE, transposed, beta, add_temporary)
    assert report["max_relative_error"] <= 1e-6
    assert report["max_relative_error"] == report["max_relative_error_mm_and_add"]
    assert report["same_bits"]
    assert report["temporary_bytes"] is None
    assert report["seconds"] > 0
    assert report["seconds_mm_and_add"] > 0


def _rounded(total, a, b, beta):
    total.copy_((total * beta + a.float() @ b.float()).to(a.dtype))


def _forgotten_sum(total, a, b, beta):
    add_temporary(total, a, b, 0.0)


def _noisy(total, a, b, beta):
    add_temporary(total, a, b, beta)
    total.add_(torch.rand_like(total), alpha=1e-3)


@BOTH
@pytest.mark.parametrize(
    ("wrong", "error"), [(_rounded, 1e-4), (_forgotten_sum, 0.1), (_noisy, 1e-6)]
)
def test_what_is_wrong_is_seen(dtype, wrong, error):
    report = product_report(CPU, dtype, SHAPE, False, 1.0, wrong)
    assert report["max_relative_error"] > error
    assert report["same_bits"] == (wrong is not _noisy)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_adds_in_place_as_exactly_as_through_a_temporary():
    report = accumulation_probe(torch.device("cuda", torch.cuda.current_device()))
    assert set(report) == {"bfloat16", "float16"}
    for name, found in report.items():
        assert found["accumulates"] == bool(found["products"])
        for product in found["products"]:
            bound = 2 * product["max_relative_error_mm_and_add"] + 1e-6
            assert product["max_relative_error"] <= bound < 1e-3, (name, product)
            assert product["same_bits"], (name, product)
            rows, _, cols = product["shape"]
            assert product["temporary_bytes"] < 4 * rows * cols, (name, product)


def test_the_command_prints_the_report(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["accumulation", "--device", "cpu"])
    accumulation.main()
    assert '"accumulates": false' in capsys.readouterr().out
