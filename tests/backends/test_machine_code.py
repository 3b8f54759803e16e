"""Every kernel in every shipped launch setting, compiled to machine code without a GPU.

The committed table has all of them. Where the kernels are still those that it was made of, every
fourth is compiled again, by the Triton that is installed; where not, all are, which takes minutes.
The candidates that tuning tries are compiled for sm_90 in bfloat16 alone, a sample of them too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

pytest.importorskip("triton", reason="the package triton is not installed")

from bench.models.candidate_kernels import candidate_configurations
from bench.models.machine_code import TUNED_FOR, faults
from bench.models.shipped_kernels import SWITCH_NAMES, TARGETS, configurations, source

# One test waits for all to be compiled: two minutes, more where other work takes the cores.
pytestmark = pytest.mark.timeout(3600)

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = list(configurations(list(TARGETS)))
COMMITTED = json.loads((ROOT / "bench/results/machine_code.json").read_text())
SAMPLE = 4  # of so many kernels one is compiled again
SAMPLE_OF_CANDIDATES = 6
UNCHANGED = {record["source"] for record in COMMITTED} == {source()}
EVERY = SAMPLE if UNCHANGED else 1


CANDIDATES = list(candidate_configurations())[::SAMPLE_OF_CANDIDATES]


def _key(record) -> tuple:
    names = "target", "kernel", "dtype", *SWITCH_NAMES
    return (*(record[name] for name in names), *record.get("launch", ()))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """One compilation for all tests, of all workers, where kernels are not interpreted."""
    return _compiled(tmp_path_factory, "machine_code", "--every", EVERY)


@pytest.fixture(scope="session")
def compiled_candidates(tmp_path_factory):
    """The same of the candidates."""
    options = "--candidates", "--every", SAMPLE_OF_CANDIDATES
    return _compiled(tmp_path_factory, "candidates", *options)


def _compiled(tmp_path_factory, name, *options):
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of the run, which the workers share
    out = folder / f"{name}.json"
    with FileLock(f"{out}.lock"):
        if not out.exists():
            _compile(out, *options)
    return {_key(record): record for record in json.loads(out.read_text())}


def _compile(out: Path, *options: object) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.models.machine_code", "--out", str(out)]
    command += map(str, options)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "configuration", CONFIGURATIONS[::EVERY], ids=lambda c: "-".join(map(str, _key(c)))
)
def test_no_spill_shared_memory_within_the_target_and_matrix_instructions(configuration, compiled):
    assert not faults(compiled[_key(configuration)])


@pytest.mark.parametrize("configuration", CANDIDATES, ids=lambda c: "-".join(map(str, _key(c))))
def test_what_tuning_tries_has_no_fault(configuration, compiled_candidates):
    assert not faults(compiled_candidates[_key(configuration)])


GOOD = {
    "triton": "3.6.0", "target": "sm_90", "kernel": "gradient", "dtype": "bf16", "teacher": True,
    "kept": False, "pointers": False, "neg_sum": False, "copies_tensor": 4,
    "spilled": 0, "shared": 1000, "shared_limit": 2000, "matrix": {"HGMMA.64x128x16": 4},
    "atomics": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spilled": 8}, "spills 8 bytes"),
        ({"spilled": 64, "triton": "3.8.0"}, None),
        ({"spilled": 72, "triton": "3.8.0"}, "spills 72 bytes"),
        ({"shared": 2001}, "2001 bytes of shared memory, limit 2000"),
        ({"matrix": {"HGMMA.64x128x16": 1}}, "a product without matrix instructions"),
        ({"matrix": {"HMMA.16816": 64}}, "a product without matrix instructions"),
        ({"target": "sm_80", "matrix": {"HMMA.16816": 64}, "copies_tensor": 0}, None),
        ({"copies_tensor": 0}, "factors without tensor copies"),
        ({"copies_tensor": 0, "pointers": True}, None),
        ({"atomics": 2}, "2 atomic operations"),
        ({"kernel": "stored_gradient", "matrix": {}, "copies_tensor": 0}, None),
        ({"kernel": "pair_gradient", "matrix": {}, "copies_tensor": 0}, None),
    ],
)
def test_the_check_can_fail(change, fault):
    assert faults(GOOD | change) == ([] if fault is None else [fault])


@pytest.fixture(scope="session")
def records(compiled):
    """Of the kernels as they are: those just compiled, and the committed ones where unchanged."""
    return [*compiled.values(), *(COMMITTED if UNCHANGED else ())]


def _bf16(records, kernel):
    return [
        record
        for record in records
        if (record["kernel"], record["dtype"]) == (kernel, "bf16") and not record["diagnostics"]
    ]


def test_exponentials_of_an_entry(records):
    """Exact maxima take one for the row and one for the column, of S and of T.

    The gradient's serve both, and under rules it has two as well; T that is compared alone has
    none. Few more are for the normalisers of rows and columns (under rules Triton 3.8 has some
    where 3.6 has none): more of the smaller tile that sm_80 has for the sums over the negatives.
    """
    for kernel, plain in (("statistics", 2), ("gradient", 1)):
        for record in _bf16(records, kernel):
            if record["target"] not in ("sm_80", "sm_90"):
                continue
            smaller = record["target"] == "sm_80" and record["neg_sum"]
            matrices = 1 + (record["teacher"] and not record["filter"])
            each = 2 if record["told"] else plain
            if record["told"] or not (record["pointers"] or smaller):
                assert 1 <= record["exponentials_each"] / matrices / each < 1.3


def test_tiles_are_loaded_and_stored_16_bytes_at_a_time(records):
    for record in _bf16(records, "gradient"):
        if record["target"] == "sm_80" or record["pointers"]:
            assert record["copies_asynchronous"] > 0
        if record["target"] != "gfx942":  # under rules there are three sums of a tile beside it
            assert record["stores_16"] > record["stores_narrow"] - 3 * record["told"]


def test_two_programs_share_a_multiprocessor_of_an_h100(records):
    """One multiplies while the other takes exponentials."""
    for kernel in ("statistics", "gradient", "sigmoid_statistics", "sigmoid_gradient"):
        for record in _bf16(records, kernel):
            if record["target"] == "sm_90" and not record["pointers"]:
                assert record["programs"] >= 2


def test_the_committed_table_lists_every_configuration():
    assert [_key(record) for record in COMMITTED] == [_key(c) for c in CONFIGURATIONS]


def test_the_committed_table_has_no_fault():
    assert {record["triton"][: len(TUNED_FOR)] for record in COMMITTED} == {TUNED_FOR}
    assert not [(_key(record), faults(record)) for record in COMMITTED if faults(record)]


def test_a_sample_has_every_kernel_and_target():
    for name in ("kernel", "target", "dtype"):
        assert {c[name] for c in CONFIGURATIONS[::SAMPLE]} == {c[name] for c in CONFIGURATIONS}


def test_the_list_of_configurations_covers_the_launch_table():
    from mxm_kernels.backends.triton.settings import SETTINGS

    covered = {(c["target"], c["kernel"], c["teacher"]) for c in CONFIGURATIONS}
    for target, phases in SETTINGS.items():
        if target != "interpreter":
            for phase in phases:
                teachers = (False,) if "sigmoid" in phase else (False, True)
                assert {(target, phase, teacher) for teacher in teachers} <= covered
