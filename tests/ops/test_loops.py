"""Few programs walk many tiles each: the loops that a small batch reaches on no GPU by itself."""

import pytest
import torch

from mxm_kernels import backends
from mxm_kernels.tuning import check
from mxm_kernels.tuning.workload import small

CASES = [
    ("statistics", False, False),
    ("statistics", True, False),
    ("statistics", False, True),
    ("statistics", True, True),
    ("gradient", False, False),
    ("gradient", True, False),
    ("sigmoid_statistics", False, False),
    ("sigmoid_gradient", False, False),
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)))
def workload(request, backend):
    """1,037 x 901 on a GPU: several tiles of every launch; 3 x 3 tiles where interpreted."""
    if backend.name != "triton":
        pytest.skip(f"{backend}: its programs are not Triton's")
    from mxm_kernels.backends.triton.settings import Cell

    phase, teacher, diagnostics = request.param
    D, rows = (16, 40) if backend.interpreted else (96, 1037)
    return small(Cell(phase, torch.bfloat16, teacher, D, rows, diagnostics), backend.device)


@pytest.mark.parametrize("programs", [2, 3, 5, 8])
def test_few_programs_give_float64s_results(workload, programs):
    from mxm_kernels.backends.triton import launch

    with launch.few_programs(programs):
        got = workload.run(backends.load("triton"), check.EVERYTHING)
    assert check.wrong(workload, got, check.expected(workload)) is None


@pytest.mark.parametrize("programs", [2, 7])
def test_five_runs_give_the_same_bits(workload, programs):
    from mxm_kernels.backends.triton import launch

    with launch.few_programs(programs):
        runs = [workload.run(backends.load("triton"), check.EVERYTHING) for _ in range(5)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_a_wrong_result_is_seen(workload):
    got = workload.run(backends.load("triton"), check.EVERYTHING)
    wanted = check.expected(workload)
    for name, value in got._asdict().items():
        if value.numel() and name != "kept":
            fault = check.wrong(workload, got._replace(**{name: value * 1.02}), wanted)
            assert fault is not None and fault.startswith(f"{name} is off by")
