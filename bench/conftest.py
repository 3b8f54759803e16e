"""Options of the benchmark run, and the fixtures that hand results to the file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from bench import machine as machines
from bench.cases import Group, cpu_suite, gpu_suite
from bench.results_file import RESULTS, Record, Results


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of ``pytest bench``."""
    group = parser.getgroup("mxm_kernels benchmarks")
    group.addoption("--bench-device", default="cpu", help="cpu or cuda")
    group.addoption("--bench-out", type=Path, default=RESULTS, help="folder of the results")
    group.addoption(
        "--bench-minutes", type=float, default=15.0, help="no group starts after this time"
    )


def suite(device: str) -> list[Group]:
    """The groups of a device."""
    return gpu_suite(machines.cores()) if device == "cuda" else cpu_suite(machines.cores())


def pytest_configure(config: pytest.Config) -> None:
    """The time of the run counts from here."""
    config.stash[_START] = time.monotonic()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for every group, in the order of importance."""
    if "group" in metafunc.fixturenames:
        groups = suite(metafunc.config.getoption("--bench-device"))
        metafunc.parametrize("group", groups, ids=str)


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
def in_time(pytestconfig: pytest.Config) -> None:
    """Skip what would start too late: the rest of the results then is on time."""
    minutes = pytestconfig.getoption("--bench-minutes")
    if time.monotonic() - pytestconfig.stash[_START] > 60 * minutes:
        pytest.skip(f"not started within {minutes:g} minutes")


@pytest.fixture
def keep(pytestconfig: pytest.Config, machine: dict):
    """Write records to the machine's file, each with where it was measured."""
    out = pytestconfig.getoption("--bench-out") / f"{machines.slug(machine)}.json"

    def write(records: list[Record]) -> None:
        Results(out).add([{**record, "machine": machine} for record in records])

    return write
