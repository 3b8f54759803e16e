"""What a record says about the machine, and the file that it goes to."""

import json

import pytest
import torch

from bench import machine
from bench.report import results_files
from bench.results_file import RESULTS, read

CPU = torch.device("cpu")


@pytest.mark.parametrize("path", results_files(RESULTS), ids=lambda path: path.stem)
def test_a_committed_file_is_named_after_its_machine(path):
    assert {machine.slug(record["machine"]) for record in read(path)} == {path.stem}


def test_this_machine():
    here = machine.describe(CPU)
    assert here["cpu"] and here["cores"] >= 1
    assert 0 < machine.free_bytes(CPU) <= here["memory_bytes"]
    assert json.loads(json.dumps(here)) == here


def test_a_processor_without_a_name_of_its_own(monkeypatch):
    monkeypatch.setattr(machine, "get_cpu_info", dict)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    assert machine.cpu_model.__wrapped__() == machine.platform.machine()


@pytest.mark.parametrize(
    ("flags", "expected"), [({"avx2"}, False), ({"avx2", "avx512_bf16"}, True), ({"bf16"}, True)]
)
def test_whether_a_cpu_multiplies_bfloat16(flags, expected, monkeypatch):
    monkeypatch.setattr(machine, "get_cpu_info", lambda: {"flags": sorted(flags)})
    assert machine.multiplies_bfloat16() == expected
