"""Options of the benchmark run, and the fixtures that hand results to the file."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest
import torch

from bench import machine as machines
from bench.cases import Group, cpu_suite, gpu_suite, memory_suite, smoke_suite
from bench.interleaved import apart
from bench.results_file import RESULTS, Record, Results

# What is measured is the table of launch settings, not what a user once measured: this folder is
# not there.
os.environ["MXM_KERNELS_TUNED"] = f"{tempfile.gettempdir()}/mxm-kernels-bench-{os.getpid()}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of ``pytest bench``."""
    group = parser.getgroup("mxm_kernels benchmarks")
    group.addoption("--bench-device", default="cpu", help="cpu or cuda")
    group.addoption("--bench-suite", default="full", choices=("full", "smoke"))
    group.addoption("--bench-out", type=Path, default=RESULTS, help="folder of the results")
    group.addoption(
        "--bench-minutes",
        type=float,
        default=15.0,
        help="no group starts that would not end by then",
    )


def suite(name: str, device: torch.device) -> list[Group]:
    """The groups that are measured on a device."""
    if name == "smoke":
        return smoke_suite(device)
    if device.type == "cuda":
        return gpu_suite()
    return cpu_suite(machines.cores(), machines.multiplies_bfloat16())


def pytest_configure(config: pytest.Config) -> None:
    """The time of the run counts from here."""
    config.stash[_START] = time.monotonic()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for every group, in the order of importance, and for every batch of memory."""
    option = metafunc.config.getoption
    name, device = option("--bench-suite"), torch.device(option("--bench-device"))
    if "group" in metafunc.fixturenames:
        metafunc.parametrize("group", suite(name, device), ids=str)
    if "memory_case" in metafunc.fixturenames:
        cases = memory_suite(name, device)
        metafunc.parametrize("memory_case", cases, ids=[case.name for case in cases])


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_group_stats(benchmarks: list[dict]) -> list[tuple[str, list[dict]]]:
    """The tables in the terminal: one for each group, one line for each provider and case."""
    return [(b["name"], apart(b, flat=True)) for b in benchmarks]


def pytest_benchmark_update_json(output_json: dict) -> None:
    """What ``--benchmark-json`` writes: one benchmark for each provider and case."""
    output_json["benchmarks"] = [one for b in output_json["benchmarks"] for one in apart(b)]


_START = pytest.StashKey[float]()


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> torch.device:
    """The device that is measured."""
    return torch.device(pytestconfig.getoption("--bench-device"))


@pytest.fixture(scope="session")
def machine(device: torch.device) -> dict:
    """What every record says about the machine."""
    return machines.describe(device)


@pytest.fixture
def in_time(request: pytest.FixtureRequest) -> None:
    """Skip what would end too late: the results of the rest then are there on time."""
    minutes = request.config.getoption("--bench-minutes")
    left = 60 * minutes - (time.monotonic() - request.config.stash[_START])
    group = request.node.callspec.params.get("group")
    needs = group.needs if isinstance(group, Group) else 45
    if needs > left:
        pytest.skip(f"it needs about {needs:.0f} s, {left:.0f} of {minutes:g} minutes are left")


@pytest.fixture
def keep(pytestconfig: pytest.Config, machine: dict):
    """Write records to the machine's file, each with where it was measured."""
    out = pytestconfig.getoption("--bench-out") / f"{machines.slug(machine)}.json"

    def write(records: list[Record]) -> None:
        Results(out).add([{**record, "machine": machine} for record in records])

    return write
