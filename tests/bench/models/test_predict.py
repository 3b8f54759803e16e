"""Occupancy against numbers worked out by hand, and the page of predictions."""

import json
import sys

import pytest

from bench.models import predict
from bench.models.occupancy import occupancy
from bench.models.predict import default_rates, page
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
    text = page(records, default_rates())
    assert all(text.count(case.name) == 4 for case in CASES)
    assert (RESULTS / "h100-predicted.md").read_text() == text


def test_without_a_file_the_page_says_that_nothing_is_measured(records):
    text = page(records, Rates())
    assert text.startswith("# Predictions for H100 SXM: not measured\n")
    assert "documented constants, not measured" in text


def test_a_ceilings_file_changes_the_page_and_is_named(records, tmp_path):
    path = write(tmp_path / "mine.json", l2_read=19.6e12)
    text = page(records, read(path))
    assert text.startswith("# Predictions for A GPU: rates measured, steps not\n")
    assert "measured, mine.json (A GPU)" in text and "not measured" not in text
    assert "L2 gives a product 15.6 TB/s" in text
    # Twice the L2 halves its column, and shared memory decides in its place.
    lines = [line for line in text.splitlines() if "| statistics |" in line]
    assert "| 4.96 ms |" in lines[0] and "| shared memory |" in lines[0]


def test_the_file_is_taken_where_there_is_one(tmp_path):
    assert default_rates(tmp_path / "ceilings.json") == Rates()
    assert default_rates(write(tmp_path / "ceilings.json")).gpu == "A GPU"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
    predict.main()


def test_the_command_writes_the_page(records, tmp_path, monkeypatch, capsys):
    out = tmp_path / "page.md"
    run(monkeypatch, "--ceilings", write(tmp_path / "c.json"), "--out", out)
    assert out.read_text() == page(records, read(tmp_path / "c.json"))
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
