"""Several spans of the statistics and several chunks of dS, on a batch that has one of each."""

import pytest
import torch

from mxm_kernels import backends
from mxm_kernels.tuning import check
from mxm_kernels.tuning.workload import small
from tests.support.plan import in_small_parts

LOW, WIDE = torch.bfloat16, torch.float32
CASES = [
    ("statistics", LOW, False, False),
    ("statistics", LOW, True, False),
    ("statistics", LOW, False, True),
    ("statistics", LOW, True, True),
    ("stored_statistics", WIDE, True, True),
    ("gradient", LOW, False, False),
    ("gradient", LOW, True, False),
    ("stored_gradient", LOW, False, False),
    ("stored_gradient", LOW, True, False),
    ("stored_gradient", WIDE, True, False),
    ("sigmoid_statistics", LOW, False, False),
    ("sigmoid_gradient", LOW, False, False),
    ("stored_sigmoid_statistics", WIDE, False, False),
    ("stored_sigmoid_gradient", WIDE, False, False),
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case)).replace("torch.", ""))
def workload(request, backend):
    """1,037 x 901 on a GPU: several tiles of every launch; 3 x 3 tiles where interpreted."""
    if backend.name != "triton":
        pytest.skip(f"{backend}: its programs are not Triton's")
    from mxm_kernels.backends.triton.settings import Cell

    phase, dtype, teacher, diagnostics = request.param
    D, rows = (16, 40) if backend.interpreted else (96, 1037)
    return small(Cell(phase, dtype, teacher, D, rows, diagnostics), backend.device)


def test_spans_and_chunks_give_float64s_results(workload, backend, monkeypatch):
    from mxm_kernels.backends.triton import plan

    in_small_parts(monkeypatch, backend.interpreted)
    spans = plan.spans_of(workload.problem, plan.most_fields(workload.problem))
    assert 2 * spans.width < len(workload.problem.y)  # three at least
    got = workload.run(backends.load("triton"), check.EVERYTHING)
    assert check.wrong(workload, got, check.expected(workload)) is None


def test_five_runs_give_the_same_bits(workload, backend, monkeypatch):
    in_small_parts(monkeypatch, backend.interpreted)
    runs = [workload.run(backends.load("triton"), check.EVERYTHING) for _ in range(5)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_a_wrong_result_is_seen(workload):
    got = workload.run(backends.load("triton"), check.EVERYTHING)
    wanted = check.expected(workload)
    for name, value in got._asdict().items():
        if value.numel() and name not in check.UNCHECKED:
            fault = check.wrong(workload, got._replace(**{name: value * 1.02}), wanted)
            assert fault is not None and fault.startswith(f"{name} is off by")
