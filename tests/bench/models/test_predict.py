"""Occupancy against numbers worked out by hand, and the page of predictions."""

import json
import sys

import pytest

from bench.models import predict
from bench.models.occupancy import occupancy
from bench.models.predict import default_rates, headline, page
from bench.models.rates import Rates, read
from bench.models.step_model import CASES
from bench.results_file import RESULTS
from tests.support.ceilings import write


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "expected"),
    [
        ("sm_90", 255, 73728, 4, (2, "registers")),
        ("sm_90", 168, 73728, 4, (3, "registers")),
        ("sm_90", 128, 98304, 4, (2, "shared memory")),
        ("sm_90", 16, 0, 1, (32, "programs")),
        ("sm_90", 32, 0, 8, (8, "registers")),
        ("sm_80", 255, 32768, 8, (1, "registers")),
        ("gfx942", 222, 16384, 8, (1, "registers")),
        ("gfx942", 64, 16384, 4, (4, "shared memory")),
    ],
)
def test_occupancy(target, registers, shared, warps, expected):
    assert occupancy(target, registers, shared, warps) == expected


def test_tensor_memory_limits_programs():
    assert occupancy("sm_100", 32, 0, 4, tensor_columns=256) == (2, "tensor memory")


@pytest.fixture(scope="module")
def records():
    return json.loads((RESULTS / "machine_code.json").read_text())


def test_every_case_is_in_the_committed_page(records):
    text = page(records, default_rates(), headline())
    budgets = {name: [c for c in CASES if c.name == name] for name in {c.name for c in CASES}}
    for name, cases in budgets.items():
        kernels = sum(1 if case.sigmoid else 2 for case in cases)
        assert text.count(f"| {name} |") == kernels + 2 * len(cases)
    assert (RESULTS / "predicted.md").read_text() == text


def test_without_a_file_the_page_says_that_nothing_is_measured(records):
    text = page(records, Rates(), {})
    assert text.startswith("# Predictions for H100 SXM: rates documented, steps not measured\n")
    assert "documented constants, not measured" in text


def test_a_ceilings_file_changes_the_page_and_is_named(records, tmp_path):
    path = write(tmp_path / "mine.json", l2_read=16.88e12)
    text = page(records, read(path), {})
    assert text.startswith("# Predictions for A GPU: rates measured, steps not measured\n")
    assert "measured, mine.json (A GPU)" in text
    assert "L2 gives a product 20 TB/s" in text
    # Twice the L2 halves its column, and shared memory decides in its place.
    lines = [line for line in text.splitlines() if "| statistics |" in line]
    assert "| 3.87 ms |" in lines[0] and "| shared memory, then instructions |" in lines[0]


def test_what_was_measured_stands_beside(records):
    lines = {
        "MFH 32k": {
            "milliseconds": {"ours": {"both": 20.0}},
            "parts_milliseconds": {
                "statistics": {"statistics": 10.5, "merge": 0.2},
                "stored_gradient": {"dS of kept products": 4.5, "dS": 0.25, "dX": 2.0},
            },
        }
    }
    text = page(records, Rates(), lines)
    assert "steps measured where it is said" in text.splitlines()[0]
    first, second, *_ = [line for line in text.splitlines() if "16 GiB, kept" in line]
    assert first.endswith("| 10.5 ms |") and second.endswith("| 4.75 ms |")
    share = 6 * 2 * 32768**2 * 768 / 20e-3 / 798e12
    assert f"| 20 ms ({share:.0%}) |" in text
    assert "| - |" in text  # of the others


def test_the_file_is_taken_where_there_is_one(tmp_path):
    assert default_rates(tmp_path / "ceilings.json") == Rates()
    assert default_rates(write(tmp_path / "ceilings.json")).gpu == "A GPU"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    predict.main()


def test_the_command_writes_the_page(records, tmp_path, monkeypatch, capsys):
    out = tmp_path / "page.md"
    run(monkeypatch, "--ceilings", write(tmp_path / "c.json"), "--out", out)
    assert out.read_text() == page(records, read(tmp_path / "c.json"), {})
    assert capsys.readouterr().out == out.read_text() + "\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"copy": -1}, "copy: expected a positive number, got -1"), (None, "No such file")],
)
def test_the_command_says_what_is_wrong_with_a_file(
    options, message, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "c.json"
    if options is not None:
        write(path, **options)
    with pytest.raises(SystemExit):
        run(monkeypatch, "--ceilings", path)
    assert message in capsys.readouterr().err
